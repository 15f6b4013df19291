"""What goes between a run and its judge's process, pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlcli.config.rewards import JudgeConfig
from rlcli.rewards.judge.templates import Template

Scoring = Literal["submit", "submit_afresh"]
"""Methods of a `JudgeScorer` whose answers are rewards."""
Asking = Literal["trouble", "metrics", "state", "load_state"]
"""Methods that need no call of the judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a `JudgeScorer` is made of, and the state it goes on from.

    The template is that of the run's start: its file may have changed since.
    """

    config: JudgeConfig
    template: Template
    env: Mapping[str, str]
    lang: str
    run_dir: Path
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One of the scorer's methods, and the number its answer will bear. None: it was the last."""

    number: int
    method: Scoring | Asking | None
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a call came to, or what it raised."""

    number: int
    value: Any = None
    error: BaseException | None = None
