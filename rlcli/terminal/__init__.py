"""Texts for the terminal, and their translation."""
