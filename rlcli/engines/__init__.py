"""Training engines: they turn batches and advantages into updated weights."""
