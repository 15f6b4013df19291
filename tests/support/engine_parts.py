"""A small batch and an engine over a real tiny model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlcli.algos.algorithm import Algorithm
from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.distributed.collectives import ALONE, Ranks, partition
from rlcli.engines import load_fsdp, load_zero
from rlcli.engines.critic import load_critic
from rlcli.engines.lora import add_lora
from rlcli.engines.micro_batches import take_rows
from rlcli.engines.torch_engine import TorchEngine
from rlcli.models.causal_lm import check_passes, load_causal_lm
from rlcli.trainer.build_engine import choose_engine
from rlcli.types import Batch, Share

CPU = torch.device("cpu")


def config(**changes: Any) -> Config:
    """GRPO without KL, with `section__name=value` changes."""
    base = {
        "algorithm.advantage": "grpo",
        "algorithm.aggregation": "token_mean",
        "rollout.n": 4,
        "train.lr": 1e-2,
        "train.mini_batch_prompts": 4,
        "data.max_response_tokens": 9,
    }
    return with_values(Config(), {**base, **{k.replace("__", "."): v for k, v in changes.items()}})


def make_batch(*, seed: int = 0, groups: int = 4, n: int = 4) -> Batch:
    """Ragged rollouts of ragged prompts, with rewards, one row unscored."""
    draw = torch.Generator().manual_seed(seed)
    rows = groups * n
    width = 9
    lengths = torch.randint(1, width + 1, (rows,), generator=draw)
    mask = torch.arange(width)[None] < lengths[:, None]
    tokens = torch.randint(3, 200, (rows, width), generator=draw) * mask
    valid = torch.ones(rows)
    valid[1] = 0.0
    prompt_lengths = torch.randint(1, 12, (groups,), generator=draw).tolist()
    prompts = [torch.randint(3, 200, (k,), generator=draw).tolist() for k in prompt_lengths]
    return Batch(
        prompt_ids=tuple(tuple(p) for p in prompts),
        group_B=torch.arange(groups).repeat_interleave(n),
        token_ids_BT=tokens,
        lengths_B=lengths,
        response_mask_BT=mask.float(),
        rollout_logprobs_BT=-torch.rand(rows, width, generator=draw) * 8 * mask,
        rewards_B=torch.randint(0, 2, (rows,), generator=draw).float() * valid,
        valid_B=valid,
        truncated_B=lengths == width,
        baseline_B=torch.randint(0, 2, (groups,), generator=draw).float().repeat_interleave(n),
    )


def own_share(whole: Batch, ranks: Ranks, *, per_round: int = 2) -> Batch:
    """The groups of a whole batch that are this rank's."""
    costs = [len(ids) for ids in whole.prompt_ids]
    numbers = partition(costs, ranks.size, per_round=per_round)[ranks.rank]
    rows = [row for row, group in enumerate(whole.group_B.tolist()) if group in numbers]
    width = int(whole.lengths_B[rows].max()) if rows else 0
    some = take_rows(whole, rows, width, CPU)
    group_B = torch.tensor([numbers.index(g) for g in some.group_B.tolist()], dtype=torch.long)
    return replace(
        some,
        prompt_ids=tuple(whole.prompt_ids[number] for number in numbers),
        group_B=group_B,
        share=Share(numbers=tuple(numbers), total=len(whole.prompt_ids)),
    )


def make_engine(
    model: Path,
    settings: Config,
    *,
    exact: bool = False,
    ranks: Ranks = ALONE,
    dtype: torch.dtype = torch.float32,
    autocast_dtype: torch.dtype | None = None,
) -> TorchEngine:
    """The engine as `build` makes it, on the CPU."""
    torch.manual_seed(0)
    needs_reference = settings.algorithm.needs_reference and not settings.lora.rank
    has_critic = settings.algorithm.advantage == "gae"
    reference = critic = None
    if settings.train.engine == "fsdp":
        place = settings, model, CPU, dtype
        policy, peft_model = load_fsdp.load_policy(*place)
        reference = load_fsdp.load_reference(*place) if needs_reference else None
        critic = load_fsdp.load_critic(*place, 0) if has_critic else None
    elif not settings.rollout.is_native:
        place = settings, model, CPU, dtype
        policy, peft_model = load_zero.load_policy(*place)
        reference = load_fsdp.load_reference(*place) if needs_reference else None
        critic = load_zero.load_critic(*place, 0) if has_critic else None
    else:
        policy = load_causal_lm(str(model), dtype=dtype, device=CPU)
        if needs_reference and settings.train.engine == "deepspeed":
            reference = load_fsdp.load_reference(settings, model, CPU, dtype)
        elif needs_reference:
            reference = load_causal_lm(str(model), dtype=torch.float32, device=CPU)
        peft_model = add_lora(policy.model, settings.lora) if settings.lora.rank else None
        if has_critic:
            critic = load_critic(str(model), device=CPU, pad_token_id=0, trust_remote_code=False)
    engine = choose_engine(settings)(
        settings,
        policy,
        total_steps=10,
        pad_token_id=0,
        sampler_is_exact=exact,
        autocast_dtype=autocast_dtype,
        peft_model=peft_model,
        reference=reference,
        critic=critic,
        ranks=ranks,
    )
    if not settings.rollout.is_native:
        for lm in (policy, critic and critic.lm):
            if lm is not None:
                lm.run(partial(check_passes, lm, samples=False))
    return engine


def one_update(
    engine: TorchEngine, settings: Config, *, step: int = 0, seed: int = 0, groups: int = 4
) -> dict[str, float]:
    """Annotate, estimate and update once."""
    algorithm = Algorithm(settings, corrects_sampler=False)
    whole = make_batch(seed=seed, groups=groups)
    batch = engine.annotate(own_share(whole, engine.ranks), algorithm)
    advantages = algorithm.advantages(
        batch, all_reduce=engine.all_reduce, all_reduce_max=engine.all_reduce_max
    )
    return dict(advantages.stats) | engine.update(batch, advantages, algorithm, step=step)
