"""One rank of several that take five updates; the first one saves what came out.

python tests/support/rank_updates.py MODEL OUT CASE ...

Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

A case is NAME[-rows][-fsdp[-cpu]][-zeroN[-host][-released]][@MODE]. cpu: shards in host memory.
host: loaded into host memory and sharded from there, as for vLLM. released:
with few parameters stage 3 keeps all of them whole on every rank; this has it gather and release
them, as it does with many.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from engine_parts import config, make_engine, one_update

from rlcli.config.schema import Config
from rlcli.distributed.collectives import Ranks
from rlcli.engines import deepspeed_engine
from rlcli.engines.export import save_tensors
from rlcli.engines.sharded_checkpoint import ShareState, StateReader
from rlcli.engines.torch_engine import TorchEngine
from rlcli.models.causal_lm import load_tokenizer

STEPS, HALF = 5, 3
GROUPS = 32
"""Of the case that is cut into a micro-batch for every row."""
AT_ONCE = 5
"""A layer with its bias and its adapter."""
ENGINES: dict[str, dict[str, Any]] = {
    "fsdp": {"train__engine": "fsdp"},
    "cpu": {"train__offload_params": True},
    "host": {"rollout__engine": "vllm"},
    **{
        f"zero{stage}": {"train__engine": "deepspeed", "train__zero_stage": stage}
        for stage in (1, 2, 3)
    },
}
BY_ROWS = {"train__dynamic_batch": False, "train__rows_per_micro_batch": 3}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"algorithm__advantage": "gae", "critic__lr": 1e-2},
    "grpo": {"algorithm__kl_loss": True, "algorithm__kl_loss_coef": 0.1},
    "rloo": {"algorithm__advantage": "rloo", "algorithm__aggregation": "seq_mean_token_mean"},
    "reinforce": {"algorithm__advantage": "reinforce_plus_plus"},
    "remax": {"algorithm__advantage": "remax", "algorithm__entropy_coef": 0.01},
    "ties": {"algorithm__advantage": "remax", "algorithm__kl_in_reward": True},
    "kl_cov": {"algorithm__loss": "kl_cov", "algorithm__kl_cov_ratio": 0.3},
    "clip_cov": {"algorithm__loss": "clip_cov", "algorithm__clip_cov_ratio": 0.3},
    "kl_abs": {"algorithm__kl_loss": True, "algorithm__kl_loss_type": "abs"},
}
EXTRAS: dict[str, dict[str, Any]] = {
    "lora": {"lora__rank": 4, "algorithm__kl_loss": True, "algorithm__kl_loss_coef": 0.1},
    "checkpointed": {"model__gradient_checkpointing": True},
    "offloaded": {"train__offload_optimizer": True},
    "small": {"train__mini_batch_prompts": 1},
    "cut": {
        "train__dynamic_batch": False,
        "train__rows_per_micro_batch": 1,
        "train__mini_batch_prompts": GROUPS,
        "train__grad_clip": 1e9,
    },
}


def settings(case: str) -> Config:
    """The settings of a case without its mode."""
    name, *more = case.removesuffix("-released").split("-")
    changes = dict(ALGORITHMS.get(name) or EXTRAS[name])
    for word in more:
        changes |= BY_ROWS if word == "rows" else ENGINES[word]
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
    found.update(read_state(engine, ranks, save))
    return found


def read_state(engine: TorchEngine, ranks: Ranks, folder: Path | None) -> dict[str, torch.Tensor]:
    """Weights and moments, from the files that they are saved in; `folder`: which keeps them."""
    with TemporaryDirectory() as own:
        (folder,) = ranks.gather(folder or Path(own))[:1]
        folder.mkdir(exist_ok=True)
        state = engine.state().copied()
        if ranks.is_first or isinstance(state, ShareState):
            state.save(folder)
        ranks.gather(None)
        with StateReader(folder) as tensors:
            found = dict(tensors)
        ranks.gather(None)
    return found


def release_parameters() -> None:
    """Have stage 3 keep no parameter, however small, and none for its next use."""
    plain = deepspeed_engine.settings_of

    def settings_of(*args: Any, **more: Any) -> dict[str, Any]:
        found = plain(*args, **more)
        names = ("param_persistence_threshold", "max_reuse_distance", "max_live_parameters")
        found["zero_optimization"] |= {f"stage3_{name}": 0 for name in names}
        return found

    deepspeed_engine.settings_of = settings_of


def save_final(model: Path, wanted: Config, out: Path, ranks: Ranks, *, state: Path) -> int:
    """The model of a state as a run ends with it; how many parameters were whole at one time."""
    engine = make_engine(model, wanted, ranks=ranks)
    engine.load_state(state)
    largest = 0
    plain = deepspeed_engine.gathered

    def counted(parameters: list[Any], **more: Any) -> Any:
        nonlocal largest
        largest = max(largest, len(parameters))
        return plain(parameters, **more)

    deepspeed_engine.gathered = counted
    folder = out if ranks.is_first else None
    engine.save_model(folder, load_tokenizer(str(model)), merge_lora=ranks.is_first)
    deepspeed_engine.gathered = plain
    shared_out = [p for p in engine.policy.model.parameters() if hasattr(p, "ds_id")]
    assert not any(p.numel() for p in shared_out)
    return largest


def half_update(model: Path, wanted: Config, ranks: Ranks) -> dict[str, torch.Tensor]:
    """A tenth of the gradient that one update of bfloat16 weights takes."""
    engine = make_engine(model, wanted, ranks=ranks, dtype=torch.bfloat16)
    one_update(engine, wanted, groups=GROUPS)
    state = read_state(engine, ranks, None)
    return {name: value for name, value in state.items() if ".exp_avg." in name}


def take(case: str, model: Path, out: Path, ranks: Ranks) -> None:
    """A case; @load:STATE and @final:STATE go on from what @save wrote into `out`."""
    name, _, mode = case.partition("@")
    plain = deepspeed_engine.settings_of
    if name.endswith("-released"):
        release_parameters()
    mode, _, state = mode.partition(":")
    if mode == "final":
        assert save_final(model, settings(name), out / name, ranks, state=out / state) <= AT_ONCE
    elif mode == "half":
        found = half_update(model, settings(name), ranks)
        if ranks.is_first:
            save_tensors(found, out / f"{case}.safetensors")
    else:
        load = out / state if mode == "load" else None
        save = out / name if mode == "save" else None
        found = train(model, settings(name), ranks, load=load, save=save)
        if ranks.is_first:
            save_tensors(found, out / f"{case.replace(':', '-')}.safetensors")
    deepspeed_engine.settings_of = plain


def main() -> None:
    """Take every case in turn."""
    torch.set_num_threads(1)
    model, out, *cases = sys.argv[1:]
    dist.init_process_group("gloo")
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    for case in cases:
        print(case, flush=True)  # the last one is where an error came
        take(case, Path(model), Path(out), ranks)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
