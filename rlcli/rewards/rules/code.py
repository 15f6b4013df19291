"""Grades code by running its tests in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlcli.rewards.rules.answers import with_opening
from rlcli.rewards.rules.code_tests import make_job, read_tests
from rlcli.rewards.rules.explained import Explained
from rlcli.rewards.rules.undecided import InvalidReference, Undecided
from rlcli.rewards.sandbox import Sandbox, find_sandbox

LIMIT_S = 8.0
SHARE_OF_TIME = 0.8
"""Of the time a call has: code that never ends is wrong, and says so before its process is lost."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    sandbox: Sandbox | None = None,
    limit_s: float = LIMIT_S,
) -> float:
    """1.0 when the response's code passes every test within `limit_s`, else 0.0.

    Raises:
        InvalidReference: the ground truth has no tests.
        RewardError: there is no sandbox, or it failed.
    """
    response = with_opening(solution_str, extra_info)
    job = make_job(ground_truth, extra_info or {}, response)
    if job is None:
        return Undecided(0.0)
    outcome = (sandbox or find_sandbox()).grade(job, limit_s=limit_s)
    return 1.0 if outcome.passed else Explained(0.0, outcome.why)


def reference_problem(ground_truth: Any, extra_info: Mapping[str, Any] | None = None) -> str | None:
    """Why this gold cannot be graded against; None when it can."""
    try:
        read_tests(ground_truth)
    except InvalidReference as error:
        return str(error)
    return None
