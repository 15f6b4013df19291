"""How good a model is on held-out data: unbiased pass@k, with a confidence interval."""
