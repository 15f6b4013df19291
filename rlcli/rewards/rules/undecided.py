"""What a rule says where there is nothing to compare: wrong by itself, open where a judge looks."""

from __future__ import annotations

from rlcli.errors import RewardError


class Undecided(float):
    """The 0 of a response without an answer, or with several that differ."""


class InvalidReference(ValueError):
    """The ground truth cannot be read."""


class NoRule(RewardError):
    """No built-in rule grades this data source."""
