"""Rollouts and samplers for tests of a step."""

from __future__ import annotations

from collections.abc import Sequence

from rlcli.rollout.base import OnFinish, SamplingParams
from rlcli.types import Prompt, Rollout


def prompt(name: str) -> Prompt:
    return Prompt(id=name, messages=(), token_ids=(3, 4))


def rollout(name: str, length: int, *, greedy: bool = False) -> Rollout:
    return Rollout(
        prompt=prompt(name),
        text=name,
        token_ids=tuple(range(5, 5 + length)),
        logprobs=tuple(-0.1 * i for i in range(length)),
        finish_reason="stop",
        policy_version=0,
        greedy=greedy,
    )


class CountingSampler:
    """n rollouts of lengths 1, 2, ... n per prompt."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        prompt_indices: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Rollout]:
        self.asked.append([p.id for p in prompts])
        greedy = params.temperature == 0
        out = [rollout(p.id, i + 1, greedy=greedy) for p in prompts for i in range(params.n)]
        for i in reversed(range(len(out))):
            if on_finish is not None:
                on_finish(i, out[i])
        return out
