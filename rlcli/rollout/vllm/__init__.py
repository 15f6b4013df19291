"""vLLM as the sampler; it receives the trainer's weights after each update."""
