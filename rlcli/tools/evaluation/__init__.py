"""Evaluate a model on held-out data: unbiased pass@k with a confidence interval."""
