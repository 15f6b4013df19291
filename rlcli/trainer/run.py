"""The parts of a run."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlcli.algos.algorithm import Algorithm
from rlcli.config.schema import Config
from rlcli.data.prompts import PromptStream
from rlcli.distributed.collectives import ALONE, Ranks
from rlcli.engines.base import TrainEngine
from rlcli.monitor.monitor import Monitor, NullMonitor
from rlcli.rewards.base import Scorer
from rlcli.rollout.base import Sampler
from rlcli.trainer.checkpointing import Checkpoints
from rlcli.types import Prompt


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything a run is made of. Made by `build`, used by the loop.

    scored_by_env: an environment gives the reward, alone or as a part of a mix.
    """

    config: Config
    num_steps: int
    prompts: PromptStream
    val_prompts: Sequence[Prompt]
    sampler: Sampler
    scorer: Scorer
    engine: TrainEngine
    algorithm: Algorithm
    checkpoints: Checkpoints
    monitor: Monitor | NullMonitor
    tokenizer: Any
    ranks: Ranks = ALONE
    scored_by_env: bool = False

    def seed(self, step: int, *purpose: str | int) -> int:
        """A seed of its own for every step and purpose: nothing random outlives a step."""
        return zlib.crc32(repr((self.config.run.seed, step, *purpose)).encode())

    def should_stop(self) -> bool:
        """Whether rank 0 was asked to stop. Every rank calls this at the same point."""
        return self.ranks.first(self.monitor.stop_requested)
