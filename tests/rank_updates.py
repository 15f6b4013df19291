"""One rank of several that take five updates; the first one saves what came out.

python tests/rank_updates.py MODEL OUT CASE ...   under RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engine_parts import config, make_engine, one_update

from rlcli.config.schema import Config
from rlcli.engines.export import save_tensors
from rlcli.engines.ranks import Ranks

STEPS, HALF = 5, 3
SHARDED = {f"zero{stage}": {"train__zero_stage": stage} for stage in (1, 2, 3)}
BY_ROWS = {"train__dynamic_batch": False, "train__rows_per_micro_batch": 3}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"algorithm__advantage": "gae", "critic__lr": 1e-2},
    "grpo": {"algorithm__kl_loss": True, "algorithm__kl_loss_coef": 0.1},
    "rloo": {"algorithm__advantage": "rloo", "algorithm__aggregation": "seq_mean_token_mean"},
    "reinforce": {"algorithm__advantage": "reinforce_plus_plus"},
    "remax": {"algorithm__advantage": "remax", "algorithm__entropy_coef": 0.01},
}
EXTRAS: dict[str, dict[str, Any]] = {
    "lora": {"lora__rank": 4, "algorithm__kl_loss": True, "algorithm__kl_loss_coef": 0.1},
    "checkpointed": {"model__gradient_checkpointing": True},
    "offloaded": {"train__offload_optimizer": True},
    "small": {"train__mini_batch_prompts": 1},
}


def settings(case: str) -> Config:
    """The settings of `algorithm-or-extra[-rows][-zeroN]`."""
    name, *more = case.split("-")
    changes = dict(ALGORITHMS.get(name) or EXTRAS[name])
    for word in more:
        changes |= BY_ROWS if word == "rows" else {"train__engine": "deepspeed", **SHARDED[word]}
    changes.setdefault("train__mini_batch_prompts", 2)
    return config(train__lr=1e-3, **changes)


def train(
    model: Path, wanted: Config, ranks: Ranks, *, load: Path | None = None, save: Path | None = None
) -> dict[str, torch.Tensor]:
    """Weights and moments after the updates, and the metrics of each.

    save: only the first HALF updates, and their state in this folder. load: the others after it.
    """
    engine = make_engine(model, wanted, ranks=ranks)
    if load is not None:
        engine.load_state(load)
    found: dict[str, torch.Tensor] = {}
    for step in range(HALF if load else 0, HALF if save else STEPS):
        for name, value in one_update(engine, wanted, step=step, seed=step).items():
            found[f"metric.{step}.{name}"] = torch.tensor(value)
    for tensors in engine.state().copied()._files.values():
        found.update(tensors)
    state = engine.state()
    if save is not None and ranks.is_first:
        save.mkdir()
        state.save(save)
    return found


def take(case: str, model: Path, out: Path, ranks: Ranks) -> None:
    """`case`, or `case@save`, or `case@load:STATE` of a state that was saved into `out`."""
    name, _, mode = case.partition("@")
    load = out / mode.removeprefix("load:") if mode.startswith("load:") else None
    save = out / name if mode == "save" else None
    found = train(model, settings(name), ranks, load=load, save=save)
    if ranks.is_first:
        save_tensors(found, out / f"{case.replace(':', '-')}.safetensors")


def main() -> None:
    """Take every case in turn."""
    torch.set_num_threads(1)
    model, out, *cases = sys.argv[1:]
    dist.init_process_group("gloo")
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    for case in cases:
        take(case, Path(model), Path(out), ranks)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
