"""Steps, mini-batches and micro-batches: what fits into what."""

from __future__ import annotations

from dataclasses import dataclass

from rlcli.config.resolved import SHRUNK, Resolved, shrunk, with_values
from rlcli.config.schema import Config
from rlcli.errors import ConfigError

STEP = "train.prompts_per_step"
MINI = "train.mini_batch_prompts"
CRITIC_MINI = "critic.mini_batch_prompts"
ROWS = "train.micro_batch_size"
DYNAMIC = "train.dynamic_batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """The numbers of a run's batches. One of the two micro-batch limits is None."""

    prompts_per_step: int
    n: int
    rollouts_per_step: int
    mini_batches: int
    rollouts_per_mini_batch: int
    tokens_per_micro_batch: int | None
    micro_batch_size: int | None
    steps_per_epoch: int
    num_steps: int


def resolve_batches(resolved: Resolved) -> Resolved:
    """`resolved` with mini-batches no larger than a step and a way to cut micro-batches.

    Raises:
        ConfigError: neither tokens nor rows cut micro-batches, or the rows do not divide.
    """
    return _settle_rows(_settle_mini_batches(resolved))


def _settle_mini_batches(resolved: Resolved) -> Resolved:
    step = resolved.config.train.prompts_per_step
    for key in (MINI, CRITIC_MINI):
        size = resolved.value(key)
        if size is not None and size > step:
            note = f"{key} is {step}: {size} was more than the step's prompts ({STEP})."
            origin = shrunk(resolved.sources[key], STEP)
            resolved = resolved.override({key: step}, note=note, origin=origin)
    return resolved


def _settle_rows(resolved: Resolved) -> Resolved:
    train = resolved.config.train
    if ROWS in resolved.explicit and train.micro_batch_size and DYNAMIC not in resolved.explicit:
        note = f"{resolved.where(ROWS)} turns {DYNAMIC} off: micro-batches are cut by rows."
        resolved = resolved.override({DYNAMIC: False}, note=note, origin=resolved.sources[ROWS])
    train = resolved.config.train
    if train.dynamic_batch:
        return resolved
    if train.micro_batch_size is None:
        raise ConfigError(
            f"{resolved.where(DYNAMIC)} cuts micro-batches by rows, and {ROWS} is not set.\n"
            f"Set {ROWS}, or leave {DYNAMIC} on."
        )
    return _fit_rows(resolved, train.micro_batch_size)


def _fit_rows(resolved: Resolved, rows: int) -> Resolved:
    config = resolved.config
    total = config.train.mini_batch_prompts * config.rollout.n
    if rows > total:
        note = f"{ROWS} is {total}: {rows} was more than the rollouts of a mini-batch."
        origin = shrunk(resolved.sources[ROWS], "the mini-batch")
        return resolved.override({ROWS: total}, note=note, origin=origin)
    if total % rows and SHRUNK not in resolved.sources[MINI]:
        nearest = min(_divisors(total), key=lambda divisor: abs(divisor - rows))
        raise ConfigError(
            f"{resolved.where(ROWS)} does not divide a mini-batch of {total} rollouts "
            f"({resolved.where(MINI)} x n={config.rollout.n}).\n"
            f"Use {nearest}, or {DYNAMIC}=true."
        )
    return resolved


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def batch_arithmetic(config: Config, num_rows: int) -> tuple[Config, list[str]]:
    """`config` with batches no larger than the data of `num_rows` prompts, and its arithmetic.

    The last two lines are a step's and the run's; what had to shrink is said before them.
    """
    notes: list[str] = []
    if config.train.prompts_per_step > num_rows:
        size = config.train.prompts_per_step
        notes.append(f"{STEP} is {num_rows}: {size} was more than the data has.")
        config = with_values(config, {STEP: num_rows})
    step = config.train.prompts_per_step
    sizes = {MINI: config.train.mini_batch_prompts, CRITIC_MINI: config.critic.mini_batch_prompts}
    for key, size in sizes.items():
        if size is not None and size > step:
            notes.append(f"{key} is {step}: {size} was more than a step has.")
            config = with_values(config, {key: step})
    rows = config.train.micro_batch_size
    total = config.train.mini_batch_prompts * config.rollout.n
    if not config.train.dynamic_batch and rows is not None and rows > total:
        notes.append(f"{ROWS} is {total}: {rows} was more than the rollouts of a mini-batch.")
        config = with_values(config, {ROWS: total})
    return config, [*notes, step_line(config), _run_line(config, num_rows)]


def batching(config: Config, num_rows: int) -> Batching:
    """The numbers of the batches over `num_rows` prompts, for a config that fits them."""
    train = config.train
    steps_per_epoch = -(-num_rows // train.prompts_per_step)
    num_steps = steps_per_epoch * train.epochs
    return Batching(
        prompts_per_step=train.prompts_per_step,
        n=config.rollout.n,
        rollouts_per_step=train.prompts_per_step * config.rollout.n,
        mini_batches=-(-train.prompts_per_step // train.mini_batch_prompts),
        rollouts_per_mini_batch=train.mini_batch_prompts * config.rollout.n,
        tokens_per_micro_batch=train.tokens_per_micro_batch if train.dynamic_batch else None,
        micro_batch_size=None if train.dynamic_batch else train.micro_batch_size,
        steps_per_epoch=steps_per_epoch,
        num_steps=min(num_steps, train.max_steps or num_steps),
    )


def step_line(config: Config) -> str:
    """`128 prompts x n=4 = 512 rollouts/step -> 2 mini-batches x 256 -> micro-batches of ...`."""
    facts = batching(config, config.train.prompts_per_step)
    uneven = facts.rollouts_per_step % facts.rollouts_per_mini_batch
    several = "mini-batch" if facts.mini_batches == 1 else "mini-batches"
    size = f"{'<= ' if uneven else ''}{facts.rollouts_per_mini_batch:,}"
    if facts.tokens_per_micro_batch is not None:
        micro = f"<= {facts.tokens_per_micro_batch:,} tokens"
    else:
        micro = f"<= {facts.micro_batch_size:,} rollouts"
    epochs = config.train.ppo_epochs
    times = f", {epochs} times (train.ppo_epochs)" if epochs > 1 else ""
    return (
        f"{facts.prompts_per_step:,} prompts x n={facts.n} = {facts.rollouts_per_step:,} "
        f"rollouts/step -> {facts.mini_batches} {several} x {size}{times} "
        f"-> micro-batches of {micro}"
    )


def _run_line(config: Config, num_rows: int) -> str:
    facts = batching(config, num_rows)
    last = num_rows % facts.prompts_per_step
    short = f" (the last of an epoch with {last:,} prompts)" if last else ""
    all_steps = facts.steps_per_epoch * config.train.epochs
    stop = f", stopped after {facts.num_steps:,} (train.max_steps)"
    return (
        f"{num_rows:,} prompts / {facts.prompts_per_step:,} = {facts.steps_per_epoch:,} "
        f"steps/epoch{short} x {config.train.epochs} epochs = {all_steps:,} steps"
        f"{stop if facts.num_steps < all_steps else ''}"
    )
