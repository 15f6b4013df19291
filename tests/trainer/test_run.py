"""What a run draws depends on its seed, the step and the purpose, and on nothing before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rlcli.config.schema import Config, RunConfig
from rlcli.trainer.run import Run


def seed(run_seed: int, step: int, *purpose: str | int) -> int:
    run: Any = SimpleNamespace(config=Config(run=RunConfig(seed=run_seed)))
    return Run.seed(run, step, *purpose)


def test_every_run_step_and_purpose_has_a_seed_of_its_own() -> None:
    drawn = [
        seed(run_seed, step, *purpose)
        for run_seed in (0, 1, 42)
        for step in (0, 1, 7)
        for purpose in (("sample",), ("sample", 1), ("torch", 0))
    ]
    assert len(set(drawn)) == len(drawn)
    assert seed(42, 7, "sample") == seed(42, 7, "sample")
