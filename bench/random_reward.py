"""A reward that differs between the rollouts of a group, so that an update leaves none out."""

import random


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: object = None
) -> float:
    """Uniform in [0, 1)."""
    return random.random()
