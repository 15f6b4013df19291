"""A scorer whose rewards come when the test says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from rlcli.types import Prompt, Reward, Rollout, StepRecord


class Held:
    """Gives out `futures` in the order of `submit`. A service costs and has canaries."""

    def __init__(self, *, is_service: bool = False) -> None:
        self.is_service = is_service
        self.futures: list[Future[Reward]] = []
        self.is_closed = False
        self.kept: dict[str, Any] = {"spent_usd": 1.5} if is_service else {}

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        if self.is_closed:
            raise RuntimeError("the scorer is closed")
        self.futures.append(Future())
        return self.futures[-1]

    def can_recover(self, unscored: Reward) -> bool:
        return self.is_service

    def state(self) -> dict[str, Any]:
        return self.kept

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.kept = dict(state)

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        return [Future()] if self.is_service else []

    def trouble(self) -> str | None:
        return None

    def normalize(self, rewards: Sequence[Reward], *, update_stats: bool) -> list[Reward]:
        return [*rewards]

    def metrics(self) -> StepRecord:
        return {"judge/retries": 2.0} if self.is_service else {}

    def close(self) -> None:
        self.is_closed = True
