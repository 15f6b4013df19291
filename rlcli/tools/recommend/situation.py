"""Input and result of a recommendation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlcli.plan.shapes import ModelShape

Task = Literal["math", "code", "choice", "long_text", "dialogue", "experiment", "other"]
JUDGED = ("long_text", "dialogue")
"""Tasks without one right answer: a judge scores them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A task and a machine. memory_gib: of one GPU, of the machine where gpus is 0.

    shape: of the model; None: that of a well-known model of about `billions`.
    """

    task: Task = "math"
    gpus: int = 1
    memory_gib: float = 80.0
    billions: float = 0.5
    model: str | None = None
    shape: ModelShape | None = None
    stable: bool = False
    multi_reward: bool = False
    long_answers: bool = False
    pass_at_k: bool = False
    one_answer: bool = False


@dataclass(frozen=True, slots=True)
class Pick:
    """An algorithm, its group size, and why."""

    algorithm: str
    n: int
    why: str
