"""Prompts in: readers of data files, chat templates, the order of a run, converters."""
