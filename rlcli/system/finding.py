"""Result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """bad: no run works. warn: some runs fail or run badly. `cure`: action or command."""

    name: str
    level: Level
    says: str
    cure: str | None = None
