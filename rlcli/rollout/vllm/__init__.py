"""vLLM as the sampler: the trainer's weights are given to it after each update."""
