"""Rollouts, a sandbox, and scoring pools that are closed after the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlcli.rewards.process_pool import ScorerPool
from rlcli.rewards.sandbox import NoSandbox, Sandbox, find_sandbox
from rlcli.types import Prompt, Rollout


@pytest.fixture
def rollout() -> Any:
    """rollout(text, gold="1", data_source="q", **extra_info)."""

    def make(text: str, gold: Any = "1", data_source: str = "q", **extra_info: Any) -> Rollout:
        prompt = Prompt(
            id="a:1",
            messages=(),
            token_ids=(1,),
            ground_truth=gold,
            data_source=data_source,
            extra_info=extra_info,
        )
        return Rollout(
            prompt=prompt,
            text=text,
            token_ids=(1,),
            logprobs=(0.0,),
            finish_reason="stop",
            policy_version=0,
        )

    return make


@pytest.fixture
def user_file(tmp_path: Path) -> Any:
    """user_file(source) writes a reward file and returns `file.py:compute_score`."""

    def write(source: str, name: str = "reward.py") -> str:
        (tmp_path / name).write_text(source, encoding="utf-8")
        return f"{tmp_path / name}:compute_score"

    return write


@pytest.fixture
def pool() -> Iterator[Any]:
    """pool(fn, workers=1, timeout_s=60.0, ...)."""
    pools: list[ScorerPool] = []

    def make(fn: str, *, workers: int = 1, timeout_s: float = 60.0, **others: Any) -> ScorerPool:
        pools.append(ScorerPool(fn, workers=workers, timeout_s=timeout_s, **others))
        return pools[-1]

    yield make
    for made in pools:
        made.close()


@pytest.fixture(scope="session")
def box() -> Sandbox:
    """A sandbox of this machine."""
    try:
        return find_sandbox()
    except NoSandbox as refusal:
        pytest.skip(f"needs a sandbox: {refusal.problem}. To have one: {refusal.cure}")
