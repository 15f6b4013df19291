"""A small run whose checkpoints are saved and restored."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlcli.distributed.collectives import ALONE
from rlcli.trainer.checkpointing import Checkpoints


class Counter:
    """The parts of a run that a checkpoint talks to, with one number as their state."""

    def __init__(self) -> None:
        self.value = 0.0
        self.notes: list[str] = []
        self.evaluations: list[tuple[int, float]] = []
        self.held_out_rewards: list[tuple[int, float]] = []
        self.spent: dict[str, Any] = {}
        self.fail_with: int | None = None
        self.stop_requested = False
        self.may_write = threading.Event()
        self.may_write.set()
        self.writing = threading.Event()
        self.writers: list[str] = []

    def load_state(self, folder: Any) -> None:
        if isinstance(folder, Path):
            self.value = float(load_file(folder / "policy.safetensors")["value"])

    def state(self) -> dict[str, Any]:
        return {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, step: int) -> None:
        self.step = step


@dataclass(frozen=True)
class Value:
    """The number as what an engine saves; written when `part.may_write`."""

    part: Counter
    number: float
    num_bytes: int = 4

    def copied(self) -> Value:
        return replace(self)

    def save(self, folder: Path) -> dict[str, str]:
        self.part.writers.append(threading.current_thread().name)
        self.part.writing.set()
        assert self.part.may_write.wait(60)
        if self.part.fail_with is not None:
            raise OSError(self.part.fail_with, os.strerror(self.part.fail_with))
        save_file({"value": torch.tensor([self.number])}, folder / "policy.safetensors")
        return {}


def make_run() -> tuple[Any, Counter]:
    part = Counter()
    run = SimpleNamespace(
        num_steps=100,
        engine=SimpleNamespace(
            state=lambda folder: Value(part, part.value), load_state=part.load_state
        ),
        prompts=part,
        monitor=part,
        algorithm=SimpleNamespace(kl=part),
        scorer=SimpleNamespace(state=lambda: part.spent, load_state=part.spent.update),
        ranks=ALONE,
        should_stop=lambda: part.stop_requested,
    )
    return run, part


def checkpoints(folder: Path, **changes: Any) -> Checkpoints:
    settings: dict[str, Any] = {"save_every": 1, "keep": 2, "resume": "newest"}
    return Checkpoints(folder, **{**settings, **changes})
