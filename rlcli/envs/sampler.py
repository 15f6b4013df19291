"""Episodes from a sampler: each turn goes to an environment, whose reply the next turn follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count

from torch import Tensor

from rlcli.envs.episode_row import EpisodeParts, EpisodeRow
from rlcli.envs.process import MAX_RESETS
from rlcli.rollout.base import NextTurn, OnFinish, SamplingParams, TurnSampler
from rlcli.types import Prompt, Rollout


class EpisodeSampler:
    """A `Sampler` whose rollouts are episodes in an environment.

    max_num_seqs: rows that `sampler` samples side by side.
    """

    def __init__(self, sampler: TurnSampler, parts: EpisodeParts, *, max_num_seqs: int) -> None:
        self.sampler, self.parts, self.max_num_seqs = sampler, parts, max_num_seqs
        self.is_exact = sampler.is_exact
        spec = parts.pool.spec
        self._threads = ThreadPoolExecutor(spec.concurrency, thread_name_prefix="episode")
        # of their own: those that wait to begin must not keep others from going on
        self._resets = ThreadPoolExecutor(
            MAX_RESETS * spec.workers, thread_name_prefix="episode-begin"
        )
        self._numbers = count()

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """See Sampler."""
        self.sampler.load_weights(weights, version=version)

    def sleep(self) -> None:
        """See Sampler."""
        self.sampler.sleep()

    def close(self) -> None:
        """End the environments, then the sampler."""
        self.parts.pool.close()
        self._resets.shutdown(cancel_futures=True)
        self._threads.shutdown(cancel_futures=True)
        self.sampler.close()

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        prompt_indices: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Rollout]:
        """params.n episodes per prompt, prompts in order.

        What is drawn depends on the seed, the prompt's place, the row and the turn alone.
        """
        rows = [
            EpisodeRow(self.parts, prompt, max_tokens=params.max_tokens, number=next(self._numbers))
            for prompt in prompts
            for _ in range(params.n)
        ]
        for row in rows:
            row.begin(self._resets)
        episodes: dict[int, Rollout] = {}

        def go_on(index: int, turn: Rollout) -> Future[NextTurn | None]:
            return self._threads.submit(rows[index].go_on, turn)

        def finish(index: int, last: Rollout) -> None:
            episodes[index] = rows[index].rollout(last)
            if on_finish is not None:
                on_finish(index, episodes[index])

        max_turn_tokens = self.parts.limits.max_turn_tokens or params.max_tokens
        self.sampler.generate(
            prompts,
            replace(params, max_tokens=min(params.max_tokens, max_turn_tokens)),
            seed=seed,
            prompt_indices=prompt_indices,
            on_finish=finish,
            go_on=go_on,
        )
        return [episodes[index] for index in range(len(rows))]
