"""What the loop asks of a sampler."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from rlcli.rollout.stop import StopTexts
from rlcli.types import Prompt, Rollout

OnFinish = Callable[[int, Rollout], None]
"""Called as each rollout ends, with its index in the final list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextTurn:
    """What a rollout goes on with. token_ids: those that follow its last turn. max_tokens: of the
    next turn; at most SamplingParams.max_tokens."""

    token_ids: tuple[int, ...]
    max_tokens: int


GoOn = Callable[[int, Rollout], "Future[NextTurn | None]"]
"""Called as each turn of a rollout ends, with the rollout's index and the tokens of this turn
alone. Gives the next turn once the environment has replied; None: the rollout is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample. temperature 0: greedy. top_k <= 0 and top_p 1.0: off. stop: texts that end a
    response."""

    n: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    keep_special_tokens: bool = False
    """Whether the text of a rollout has its special tokens, but for the one that ends it."""
    stop: tuple[str, ...] = ()


class Sampler(Protocol):
    """Prompts in, rollouts out."""

    is_exact: bool
    """Whether its log-probs are the trainer's to rounding, so that they can stand in for them."""

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """Sample from these weights from now on."""
        ...

    def sleep(self) -> None:
        """Make room: nothing is sampled before the next weights."""
        ...

    def close(self) -> None:
        """Let go of what is not this process's."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        prompt_indices: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Rollout]:
        """params.n rollouts per prompt, prompts in order, a group's rollouts adjacent.

        What is drawn for a prompt depends on the seed and its place (default: its index), not on
        the prompts beside it: ranks that share the prompts of a step sample what one would.
        """
        ...


class TurnSampler(Sampler, Protocol):
    """A sampler whose rollouts may have several turns."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        prompt_indices: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
        go_on: GoOn | None = None,
    ) -> list[Rollout]:
        """See Sampler. With go_on, params.max_tokens bounds the first turn, and what is returned
        and given to on_finish is the last turn of each rollout."""
        ...


def seed_of_turn(seed: int, turn: int) -> int:
    """The seed of a later turn (1, 2, ...) in a call of `generate`."""
    return zlib.crc32(repr((seed, "turn", turn)).encode())


def finished_rollout(
    tokenizer: Any,
    prompt: Prompt,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    *,
    finish_reason: Literal["stop", "length"],
    policy_version: int,
    params: SamplingParams,
) -> Rollout:
    """A response that has ended, with its text.

    One that stopped ends with an end token, or with the token that completes a stop text; the
    text has neither.
    """
    skips = not params.keep_special_tokens
    stops = StopTexts(tokenizer, params.stop)
    if stops and finish_reason == "stop" and stops.ends(token_ids):
        text = stops.text_before(token_ids, skip_special_tokens=skips)
    else:
        visible = token_ids[:-1] if finish_reason == "stop" else token_ids
        text = tokenizer.decode(visible, skip_special_tokens=skips)
    return Rollout(
        prompt=prompt,
        text=text,
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        finish_reason=finish_reason,
        policy_version=policy_version,
        greedy=params.temperature == 0,
    )
