"""What goes between a run and its judge's process, pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcli.config.rewards import JudgeConfig

CLOSE = "close"
"""The method that ends the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a `JudgeScorer` is made of, and the state it goes on from."""

    config: JudgeConfig
    env: Mapping[str, str]
    lang: str
    run_dir: Path
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One of the scorer's methods, and the number its answer will bear."""

    number: int
    method: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a call came to, or what it raised."""

    number: int
    value: Any = None
    error: BaseException | None = None
