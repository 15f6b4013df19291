"""Grades the form of a response: `<think>...</think><answer>...</answer>` and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlcli.rewards.rules.answers import with_opening
from rlcli.rewards.rules.explained import Explained

_FORM = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
FORM_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_TAG = re.compile(r"</?(?:think|answer)>")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
) -> float:
    """1.0 when each tag occurs once, in order, and both parts contain text, else 0.0.

    A `<think>` that the chat template writes counts.
    """
    response = with_opening(solution_str, extra_info)
    match = _FORM.fullmatch(response)
    tags = _TAG.findall(response)
    if match is None or len(tags) != len(FORM_TAGS):
        missing = [tag for tag in FORM_TAGS if tag not in tags]
        if missing == ["<think>"]:
            return Explained(0.0, "no <think>, and its prompt is not known to end in one")
        lack = f"no {missing[0]}" if missing else "tags twice, out of order, or text around them"
        return Explained(0.0, lack)
    return 1.0 if all(part.strip() for part in match.groups()) else Explained(0.0, "an empty part")
