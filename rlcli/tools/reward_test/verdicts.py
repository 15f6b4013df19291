"""Interpret the numbers of a trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlcli.rewards import PASSED

STOPS = 0.2
"""Share of unscored responses above which a run stops."""
WEAK_AUC, NO_AUC, REVERSED_AUC = 0.8, 0.6, 0.4
FEW = 0.005
SAME = 0.8
"""Share of responses that should get the same score again."""


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """One line each, the most serious first; none where nothing was scored."""
    if not report["scored"]:
        return []
    found = _unscored(report)
    ends = {report.get(name) for name in ("min", "max", "wrong_min", "wrong_max")} - {None}
    if len(ends) == 1 and report["rows"] > 1 and report.get("wrong_rows", 1):
        score = report["max"]
        found.append(
            f"every response gets the same score, {score:g}, so nothing can be learned from it."
        )
    elif "wrong_scores" in report:
        found += _both(report)
    elif report["label"]:
        found += _labels(report)
    return found + _repeated(report)


def _unscored(report: Mapping[str, Any]) -> list[str]:
    share = report["unscored"] / report["rows"]
    if share <= STOPS or not report["is_whole"]:
        return []
    return [f"{share:.0%} of the responses are unscored: a run would stop at that."]


def _both(report: Mapping[str, Any]) -> list[str]:
    area, agreed = report["auc"], report["agreement"]
    if area is None:
        return ["there is no other answer to compare with: all rows have the same one."]
    if area <= 0.5:
        return ["a row's own answer is worth no more than another row's: nothing can be learnt."]
    found: list[str] = []
    if agreed is not None:
        missed, paid = _wrongly(report, "right"), _wrongly(report, "wrong")
        if missed > FEW * report["rows"]:
            found.append(
                f"{missed} of {report['rows']} own answers get less than {PASSED:g}. Does it read "
                "answers in the form they are written in?"
            )
        if paid > FEW * report["wrong_rows"]:
            found.append(
                f"{paid} of {report['wrong_rows']} answers of other rows get {PASSED:g} or more: a "
                "model would be paid for them."
            )
    if area < WEAK_AUC:
        found.append("a row's own answer is often worth no more than another row's.")
    return found or ["it tells a row's own answer from another row's."]


def _wrongly(report: Mapping[str, Any], kind: str) -> int:
    return sum(row["kind"] == kind for row in report["disagreements"])


def _labels(report: Mapping[str, Any]) -> list[str]:
    area = report["auc"]
    if area is None:
        return ["the labels are all alike: neither AUC nor agreement says anything of the reward."]
    if area < REVERSED_AUC:
        return ["it goes against the labels. Is a high label a bad response?"]
    if area < NO_AUC:
        return ["it has next to nothing to do with the labels."]
    if area < WEAK_AUC:
        return ["it follows the labels, and is often wrong."]
    return ["it follows the labels."]


def _repeated(report: Mapping[str, Any]) -> list[str]:
    again = report["repeatability"]
    if again is None or again["equal"] >= SAME:
        return []
    return [
        f"{1 - again['equal']:.0%} of the responses get another score when they are scored again; "
        "reward.judge.votes=3 takes the median of a judge's."
    ]
