"""Samplers: they turn prompts into rollouts."""
