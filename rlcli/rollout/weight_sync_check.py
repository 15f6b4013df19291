"""Checks after each weight update that a sampler with its own weights has the trainer's policy.

Two faults end the run: log-probs that differ by more than rounding, and a sampler that repeats
itself although the weights it was sent have changed. Both would otherwise train without learning,
unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from rlcli.errors import SamplerError
from rlcli.rollout.base import GoOn, OnFinish, SamplingParams, TurnSampler
from rlcli.rollout.collate import ScoredRollouts, collate
from rlcli.types import Batch, Prompt, Reward, Rollout

NUM_PROMPTS, NUM_TOKENS = 16, 16
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Mean difference of a token's log-prob that rounding may cause. Measured: 1e-6 to 2e-5 in float32;
in bfloat16 0.008 to 0.044, and 0.16 at least where one block of SmolLM2-135M was left out."""
CURE = "Train with rollout.engine=native, which shares the trainer's weights."
FLOOR_TIMES, FLOOR_PLUS = 3.0, {torch.float32: 1e-4, torch.bfloat16: 0.01}
"""Later weights may differ by this many times the first difference, plus this."""
NUM_SAMPLED = 4096
"""Entries of each tensor that are remembered, to see whether what is sent has changed."""
MIN_CHANGED = 1e-3
"""Share of remembered entries that must have changed before a repetition is a fault: a few bits
may change without a trace in the log-probs."""
MIN_MOVED = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
"""Mean change of the trainer's log-probs below which the sampler's may stay the same: those of a
policy that is certain of every token are 0, whatever its weights."""


class Trainer(Protocol):
    """The engine whose weights the sampler is sent."""

    def response_logprobs(self, batch: Batch) -> Tensor:
        """[B, T] of this rank's rows by the policy as it is; all ranks take part."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """Sampled bits of the weights sent last, and the log-probs of sampler and trainer then.

    since: the first step at which these bits were sent.
    """

    since: int
    answers: Sequence[tuple[Sequence[int], Sequence[float]]]
    trainer_N: Tensor
    sent_M: Tensor


class VerifiedSampler:
    """A sampler whose log-probs are compared with the trainer's after each weight update.

    Every rank checks its own sampler. prompts: some of them are sampled from for the check.
    temperature: of training. dtype: of the sampler's weights.
    """

    def __init__(
        self,
        sampler: TurnSampler,
        trainer: Trainer,
        prompts: Sequence[Prompt],
        *,
        temperature: float,
        max_tokens: int,
        dtype: torch.dtype,
    ) -> None:
        self.sampler, self.trainer = sampler, trainer
        self.is_exact = sampler.is_exact
        self.dtype = dtype
        self.tolerance, self._plus = TOLERANCES[dtype], FLOOR_PLUS[dtype]
        self._is_first = True
        self._prompts = [
            replace(prompt, id=str(number)) for number, prompt in enumerate(prompts[:NUM_PROMPTS])
        ]
        self._params = SamplingParams(
            n=1, max_tokens=min(NUM_TOKENS, max_tokens), temperature=temperature
        )
        self._before: _Sent | None = None

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """Raises: SamplerError when the sampler does not have the trainer's policy afterwards."""
        sent: list[Tensor] = []

        def noted() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                sent.append(sampled_bits(tensor, self.dtype))
                yield name, tensor

        noted_weights = noted()
        self.sampler.load_weights(noted_weights, version=version)
        for _ in noted_weights:  # those that the sampler did not read
            pass
        rollouts = self.sampler.generate(self._prompts, self._params, seed=0)
        trainer_N = self._trainer_logprobs(rollouts)
        own_N = torch.tensor([value for rollout in rollouts for value in rollout.logprobs])
        self._check_moved(rollouts, trainer_N, torch.cat(sent), version)
        self._check_gap(own_N, trainer_N, version)

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
        """See TurnSampler."""
        return self.sampler.generate(
            prompts,
            params,
            seed=seed,
            prompt_indices=prompt_indices,
            on_finish=on_finish,
            go_on=go_on,
        )

    def sleep(self) -> None:
        """See Sampler."""
        self.sampler.sleep()

    def close(self) -> None:
        """See Sampler."""
        self.sampler.close()

    def _trainer_logprobs(self, rollouts: Sequence[Rollout]) -> Tensor:
        """The trainer's log-probs of this rank's tokens [N]."""
        rewards = [Reward(value=0.0)] * len(rollouts)
        batch = collate(
            ScoredRollouts(rollouts=rollouts, rewards=rewards, greedy={}), needs=frozenset()
        )
        return self.trainer.response_logprobs(batch).cpu()[batch.response_mask_BT != 0]

    def _check_gap(self, own_N: Tensor, trainer_N: Tensor, version: int) -> None:
        gap_N = (own_N - trainer_N).abs()
        mean = float(gap_N.mean())
        if mean <= self.tolerance:  # a NaN is not
            if self._is_first:
                self.tolerance = min(self.tolerance, FLOOR_TIMES * mean + self._plus)
                self._is_first = False
            return
        raise SamplerError(
            f"the sampler does not have the trainer's weights of step {version}: the log-probs of "
            f"{len(gap_N)} tokens differ by {mean:.3g} on average, up to "
            f"{float(gap_N.max()):.3g}, where rounding makes {self.tolerance:g} at most.\n"
            f"{CURE}"
        )

    def _check_moved(
        self, rollouts: Sequence[Rollout], trainer_N: Tensor, sent_M: Tensor, version: int
    ) -> None:
        """A sampler whose weights have changed does not repeat itself to the last digit.

        Only the weights as they are sent count: a small step may change the trainer's float32
        weights, and its log-probs by rounding, and not one bit of the bfloat16 weights.
        """
        answers = [(rollout.token_ids, rollout.logprobs) for rollout in rollouts]
        before = self._before
        if before is None or answers != before.answers:
            since = version
            # vLLM may batch the prompts anew, and round the log-probs of the same weights otherwise
            if before is not None and torch.equal(sent_M, before.sent_M):
                since = before.since
            self._before = _Sent(since=since, answers=answers, trainer_N=trainer_N, sent_M=sent_M)
            return
        moved = float((trainer_N - before.trainer_N).abs().mean())
        changed = float((sent_M != before.sent_M).float().mean())
        if changed > MIN_CHANGED and moved > MIN_MOVED[self.dtype]:
            raise SamplerError(
                f"the sampler still has the weights of step {before.since}: its log-probs are the "
                f"same to the last digit, although {changed:.1%} of the weights sent at step "
                f"{version} are different.\n"
                f"{CURE}"
            )


def sampled_bits(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Up to NUM_SAMPLED entries of `tensor`, rounded to `dtype`, as integers on the CPU."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() > NUM_SAMPLED:
        # a prime stride: entries of all rows and columns
        index = torch.arange(NUM_SAMPLED, device=flat.device) * 1_000_003 % flat.numel()
        flat = flat[index]
    return flat.to("cpu", dtype).view(torch.int16 if dtype.itemsize == 2 else torch.int32)
