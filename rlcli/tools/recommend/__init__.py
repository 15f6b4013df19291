"""Recommend an algorithm for a task and a machine, without torch.

The guides' tree, with what docs/algorithms.md says is wrong in it put right.
"""

from __future__ import annotations

from rlcli.tools.recommend.advice import Advice, recommend
from rlcli.tools.recommend.explain import CORRECTIONS, settings_that_matter, what_to_watch
from rlcli.tools.recommend.placing import Placed, place
from rlcli.tools.recommend.situation import Pick, Situation, Task
from rlcli.tools.recommend.tree import choose, group_size

__all__ = [
    "CORRECTIONS",
    "Advice",
    "Pick",
    "Placed",
    "Situation",
    "Task",
    "choose",
    "group_size",
    "place",
    "recommend",
    "settings_that_matter",
    "what_to_watch",
]
