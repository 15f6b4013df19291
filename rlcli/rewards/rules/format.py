"""Grades the form of a response: `<think>...</think><answer>...</answer>` and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_FORM = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
) -> float:
    """1.0 when each tag stands there once, in order, around some text, else 0.0."""
    match = _FORM.fullmatch(solution_str)
    if match is None or len(_TAG.findall(solution_str)) != 4:
        return 0.0
    return float(all(part.strip() for part in match.groups()))
