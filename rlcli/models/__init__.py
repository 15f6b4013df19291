"""Causal language models: loading, checking and running them on packed tokens."""
