"""Requests to vLLM: one response each, each with its own seed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlcli.errors import SamplerError
from rlcli.rollout.base import NextTurn, SamplingParams, finished_rollout, seed_of_turn
from rlcli.rollout.stop import StopTexts
from rlcli.types import Prompt, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Request for one response or one turn. index: position of the rollout in the result.

    prompt: for a later turn, it includes all earlier turns.
    """

    index: int
    prompt: Prompt
    seed: int
    max_tokens: int
    turn: int = 0

    def next_turn(self, last: Rollout, after: NextTurn) -> SampleRequest:
        """The request that follows. last: the response to this one."""
        ids = (*self.prompt.token_ids, *last.token_ids, *after.token_ids)
        return SampleRequest(
            index=self.index,
            prompt=replace(self.prompt, token_ids=ids),
            seed=seed_of_turn(self.seed, self.turn + 1),
            max_tokens=after.max_tokens,
            turn=self.turn + 1,
        )


def wanted(
    prompts: Sequence[Prompt],
    params: SamplingParams,
    *,
    seed: int,
    prompt_indices: Sequence[int] | None = None,
) -> list[SampleRequest]:
    """params.n requests per prompt; each seed derives from call seed, prompt index and number."""
    prompt_indices = range(len(prompts)) if prompt_indices is None else prompt_indices
    return [
        SampleRequest(
            index=number * params.n + member,
            prompt=prompt,
            seed=zlib.crc32(repr((seed, place, member)).encode()),
            max_tokens=params.max_tokens,
        )
        for number, (prompt, place) in enumerate(zip(prompts, prompt_indices, strict=True))
        for member in range(params.n)
    ]


def answered(
    tokenizer: Any,
    prompt: Prompt,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    *,
    told: str | None,
    version: int,
    params: SamplingParams,
) -> Rollout:
    """Build the rollout. told: vLLM's finish reason. Raises: SamplerError if it is an error.

    vLLM has no tokenizer and samples past stop strings; the tokens after them are cut here.
    """
    reason: Literal["stop", "length"] = "length" if told == "length" else "stop"
    if told != reason:
        raise SamplerError(f"vLLM ended a response with {told!r}")
    stops = StopTexts(tokenizer, params.stop)
    kept = stops.num_kept(token_ids) if stops else None
    if kept is not None:
        token_ids, logprobs, reason = token_ids[:kept], logprobs[:kept], "stop"
    return finished_rollout(
        tokenizer,
        prompt,
        token_ids,
        logprobs,
        finish_reason=reason,
        policy_version=version,
        params=params,
    )
