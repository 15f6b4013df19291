"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """bad: no run can work. warn: some runs cannot, or not well. `cure`: what to do or type."""

    name: str
    level: Level
    says: str
    cure: str | None = None
