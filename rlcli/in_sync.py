"""A sampler with weights of its own, compared with the trainer each time it has taken new ones.

A sampler that goes on with old weights, or with wrong ones, trains on and learns nothing: nothing
else would tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rlcli.collect import Collected, collate
from rlcli.engines.ranks import Ranks
from rlcli.errors import SamplerError
from rlcli.rollout.base import OnFinish, Sampler, SamplingParams
from rlcli.types import Batch, Prompt, Reward, Rollout

NUM_PROMPTS, NUM_TOKENS = 16, 16
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Mean difference of a token's log-prob that rounding may make. Measured: 1e-6 to 2e-5 in float32,
0.008 to 0.02 in bfloat16."""
CURE = "Train with rollout.engine=native, which shares the trainer's weights."
FLOOR_TIMES, FLOOR_PLUS = 3.0, {torch.float32: 1e-4, torch.bfloat16: 0.01}
"""What later weights may differ, of what the first ones did, and this much more."""


class Trainer(Protocol):
    """What knows the weights that were given."""

    ranks: Ranks

    def response_logprobs(self, batch: Batch) -> Tensor:
        """[B, T] of the policy as it is; all ranks take part."""
        ...


class CheckedSampler:
    """Another sampler, whose log-probs are held against the trainer's after each new weights.

    Every rank has its own and compares it with what all trainers together say. prompts: some to
    sample a few tokens from. temperature: of training, which the trainer's log-probs are of.
    """

    def __init__(
        self,
        sampler: Sampler,
        trainer: Trainer,
        prompts: Sequence[Prompt],
        *,
        temperature: float,
        max_tokens: int,
        dtype: torch.dtype,
    ) -> None:
        self.sampler, self.trainer = sampler, trainer
        self.is_exact = sampler.is_exact
        self.tolerance, self._plus = TOLERANCES[dtype], FLOOR_PLUS[dtype]
        self._is_first = True
        rank = trainer.ranks.rank
        self._prompts = [
            replace(prompt, id=f"{rank} {number}")
            for number, prompt in enumerate(prompts[:NUM_PROMPTS])
        ]
        self._params = SamplingParams(
            n=1, max_tokens=min(NUM_TOKENS, max_tokens), temperature=temperature
        )
        self._before: tuple[int, object, Tensor] | None = None

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """Raises: SamplerError when what it samples from now on is not the trainer's policy."""
        self.sampler.load_weights(weights, version=version)
        rollouts = self.sampler.generate(self._prompts, self._params, seed=0)
        trainer_N = self._trainer_logprobs(rollouts)
        own_N = torch.tensor([value for rollout in rollouts for value in rollout.logprobs])
        self._check_gap(own_N, trainer_N, version)
        self._check_moved(rollouts, trainer_N, version)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        places: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Rollout]:
        """See Sampler."""
        return self.sampler.generate(prompts, params, seed=seed, places=places, on_finish=on_finish)

    def rest(self) -> None:
        """See Sampler."""
        self.sampler.rest()

    def close(self) -> None:
        """See Sampler."""
        self.sampler.close()

    def _trainer_logprobs(self, rollouts: Sequence[Rollout]) -> Tensor:
        """What the trainer says of this rank's tokens [N]; each rank brings its own."""
        shares = self.trainer.ranks.gather(list(rollouts))
        everyones = [rollout for share in shares for rollout in share]
        unscored = [Reward(value=0.0)] * len(everyones)
        batch = collate(
            Collected(rollouts=everyones, rewards=unscored, greedy={}), needs=frozenset()
        )
        logprobs_BT = self.trainer.response_logprobs(batch).cpu()
        first = self.trainer.ranks.rank * len(rollouts)
        own = slice(first, first + len(rollouts))
        return logprobs_BT[own][batch.response_mask_BT[own] != 0]

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

    def _check_moved(self, rollouts: Sequence[Rollout], trainer_N: Tensor, version: int) -> None:
        """Small steps hide in rounding, but a sampler with new weights never repeats itself."""
        said = [(rollout.token_ids, rollout.logprobs) for rollout in rollouts]
        if self._before is None or said != self._before[1]:
            self._before = (version, said, trainer_N)
            return
        since, _, known_N = self._before
        moved = float((trainer_N - known_N).abs().mean())
        if moved > self.tolerance / 10:
            raise SamplerError(
                f"the sampler still has the weights of step {since}: it says the same to the last "
                f"digit, while the trainer's log-probs of step {version} have moved by "
                f"{moved:.3g}.\n"
                f"{CURE}"
            )
