"""Small runs with environments through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlcli.cli.main import main

COUNT = '''\
import random

class Count:
    """Pays for every answer that begins with a digit; ends after a number of turns."""

    def __init__(self, turns=3):
        self.turns = turns

    def reset(self, task, seed):
        self.left, self.random = self.turns, random.Random(seed)
        return f"{self.random.randrange(10)}+1="

    def step(self, reply):
        self.left -= 1
        good = float(reply.text.strip()[:1].isdigit())
        text = f"{self.random.randrange(10)}+2="
        return {"messages": text, "reward": good * len(reply.text), "done": not self.left}
'''
"""Every turn has a reward, which differs between rollouts."""

SIZES = (
    "train.prompts_per_step=6", "train.mini_batch_prompts=3", "rollout.n=4", "train.max_steps=2",
    "data.val_limit=4",
)  # fmt: skip
LOOKUP = ("--preset", "quickstart-tools", *SIZES)
"""The lookup tool with the model that calls it."""
COUNTING = (
    "--preset", "quickstart", "--env", "count.py:Count", *SIZES,
    "env.tasks=12", "env.val_tasks=4", "env.max_turn_tokens=4", "data.max_response_tokens=32",
)  # fmt: skip
"""The environment of count.py, which `write_count` writes, with the model of sums."""


def write_count() -> None:
    """count.py in the working directory."""
    Path("count.py").write_text(COUNT)


def train(*words: str, out: str = "run") -> int:
    """The exit code of `rlcli train`."""
    return command("train", *words, "--output_dir", out)


def command(*words: str) -> int:
    """The exit code of `rlcli WORDS`."""
    with pytest.raises(SystemExit) as left:
        main([*words])
    return left.value.code  # type: ignore[return-value]


def weights(out: str = "run") -> dict[str, torch.Tensor]:
    """The final model."""
    return load_file(Path(out) / "checkpoints" / "final" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether both have the same bits."""
    return all(torch.equal(first[name], second[name]) for name in first)


def rollouts(out: str = "run", step: int = 1) -> list[dict[str, Any]]:
    """The rollouts of a step."""
    file = Path(out) / "rollouts" / f"step_{step:06d}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]
