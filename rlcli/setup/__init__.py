"""From settings to a checked plan of a run."""
