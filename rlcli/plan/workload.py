"""Number of tokens a run computes at once, with prompts and responses at full length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rlcli.config.schema import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rollouts computed together. Each prompt counts once; lengths are per prompt or response."""

    rows: int
    prompts: int
    prompt_length: int
    response_length: int

    @property
    def response_tokens(self) -> int:
        """Response tokens of all rows."""
        return self.rows * self.response_length

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return self.prompts * self.prompt_length

    @property
    def tokens(self) -> int:
        """Tokens that pass through the linear layers."""
        return self.prompt_tokens + self.response_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One rank's share of a step.

    rollout: rows sampled in parallel. sweep: micro-batch of a pass without gradients. update,
    critic: the largest micro-batch; num_update, num_critic: micro-batches per mini-batch.
    """

    rollouts: int
    rollout: Rows
    sweep: Rows
    update: Rows
    num_update: int
    critic: Rows
    num_critic: int


def workload_of(config: Config, *, num_val: int | None, ranks: int = 1) -> Workload:
    """The workload of a run on `ranks` processes. num_val: held-out prompts, None if unknown."""
    train, n = config.train, config.rollout.n
    prompts = _share(train.prompts_per_step, ranks)
    mini = _share(train.mini_batch_prompts, ranks)
    critic_mini = _share(config.critic.mini_batch_prompts or train.mini_batch_prompts, ranks)
    budget = train.tokens_per_micro_batch if train.dynamic_batch else None
    most_rows = None if train.dynamic_batch else train.micro_batch_size
    sweep_budget = config.ref.tokens_per_micro_batch
    sweep, _ = _largest(
        config, prompts, sweep_budget or budget, None if sweep_budget else most_rows
    )
    update, num_update = _largest(config, mini, budget, most_rows)
    critic, num_critic = _largest(config, critic_mini, budget, most_rows)
    return Workload(
        rollouts=prompts * n,
        rollout=_sampled(config, prompts, num_val=num_val),
        sweep=sweep,
        update=update,
        num_update=num_update,
        critic=critic,
        num_critic=num_critic,
    )


def _share(number: int, ranks: int) -> int:
    return max(1, -(-number // ranks))


def _sampled(config: Config, prompts: int, *, num_val: int | None) -> Rows:
    """Rows sampled in parallel, in training or evaluation, whichever is more."""
    rollout = config.rollout
    choices = [(prompts, rollout.n)]
    if config.evaluates:
        choices.append((rollout.max_num_seqs if num_val is None else num_val, rollout.val_n))
    together = [(min(max(1, rollout.max_num_seqs // n), number), n) for number, n in choices]
    number, n = max(together, key=lambda choice: choice[0] * choice[1])
    return _rows(config, number * n, number)


def _rows(config: Config, rows: int, prompts: int) -> Rows:
    return Rows(
        rows=rows,
        prompts=prompts,
        prompt_length=config.data.max_prompt_tokens,
        response_length=config.data.max_response_tokens,
    )


def _largest(
    config: Config, prompts: int, max_tokens: int | None, most_rows: int | None
) -> tuple[Rows, int]:
    """(largest micro-batch of `prompts` groups, number of micro-batches), split as engines do."""
    data = config.data
    lengths = (data.max_prompt_tokens, data.max_response_tokens)
    cuts, number = _cuts(prompts, config.rollout.n, lengths, max_tokens, most_rows)
    return max((_rows(config, *cut) for cut in cuts), key=lambda rows: rows.tokens), number


@lru_cache(maxsize=1024)
def _cuts(
    prompts: int,
    n: int,
    lengths: tuple[int, int],
    max_tokens: int | None,
    most_rows: int | None,
) -> tuple[frozenset[tuple[int, int]], int]:
    """({(rows, prompts) of each micro-batch}, number of micro-batches)."""
    prompt_length, response_length = lengths
    cuts: list[tuple[int, int]] = []
    rows = first = 0
    for row in range(prompts * n):
        num_prompts = row // n - first // n + 1
        tokens = (rows + 1) * response_length + num_prompts * prompt_length
        over_tokens = max_tokens is not None and tokens > max_tokens
        if rows and (over_tokens or (most_rows is not None and rows >= most_rows)):
            cuts.append((rows, (row - 1) // n - first // n + 1))
            rows, first = 0, row
        rows += 1
    cuts.append((rows, (prompts * n - 1) // n - first // n + 1))
    return frozenset(cuts), len(cuts)
