"""The built-in sampler: flat decoding with our own key-value buffers, in the trainer's process.

A group's prompt is read once and finished rows leave the batch. Keys and values are kept between
the turns of an episode. The same seed and the same prompts give the same rollouts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor

from rlcli.models.decode import make_decoder
from rlcli.models.forward import CausalLM
from rlcli.rollout.base import (
    GoOn,
    NextTurn,
    OnFinish,
    SamplingParams,
    finished_rollout,
    seed_of_turn,
)
from rlcli.rollout.sample_token import choose_tokens
from rlcli.rollout.stop import StopTexts
from rlcli.types import Prompt, Rollout


class NativeSampler:
    """Samples from a model that the trainer shares with it, or from a copy in another dtype."""

    def __init__(
        self,
        lm: CausalLM,
        tokenizer: Any,
        *,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        max_num_seqs: int,
        shares_weights: bool,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.lm = lm
        self.tokenizer = tokenizer
        self.eos_token_ids = tuple(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.max_num_seqs = max_num_seqs
        self.shares_weights = shares_weights
        self.autocast_dtype = autocast_dtype
        self.is_exact = shares_weights
        self.version = 0

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """Note the version; where the weights are not shared, copy them."""
        self.version = version
        if self.shares_weights:
            return
        own = dict(self.lm.model.named_parameters())
        with torch.no_grad():
            for name, tensor in weights:
                if name in own:
                    own[name].copy_(tensor)

    def sleep(self) -> None:
        """Nothing: its buffers live as long as a call."""

    def close(self) -> None:
        """Nothing: all is this process's."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        prompt_indices: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
        go_on: GoOn | None = None,
        limits: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """params.n rollouts per prompt, prompts in order.

        limits: most tokens of each prompt's rollouts, at most params.max_tokens, which is the
        default. A lower limit does not change the tokens before it.

        All rows of a batch begin a turn together, once the last environment has replied: the last
        bits of a log-prob depend on the number of rows beside it, and must not depend on how fast
        an environment is.
        """
        prompt_indices = range(len(prompts)) if prompt_indices is None else prompt_indices
        limits = [params.max_tokens] * len(prompts) if limits is None else limits
        per_call = max(1, self.max_num_seqs // params.n)
        out: list[Rollout] = []
        was_training = self.lm.model.training
        self.lm.model.eval()
        try:
            for start in range(0, len(prompts), per_call):
                some = slice(start, start + per_call)
                call = _Call(
                    self,
                    prompts[some],
                    params,
                    offset=start * params.n,
                    places=prompt_indices[some],
                    limits=limits[some],
                    seed=seed,
                    on_finish=on_finish,
                    go_on=go_on,
                )
                out.extend(call.run())
        finally:
            self.lm.model.train(was_training)
        return out


class _Call:
    """One batch of rows from prefill to the last EOS of its last turn."""

    def __init__(
        self,
        sampler: NativeSampler,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        offset: int,
        places: Sequence[int],
        limits: Sequence[int],
        seed: int,
        on_finish: OnFinish | None,
        go_on: GoOn | None,
    ) -> None:
        self.sampler, self.prompts, self.params = sampler, prompts, params
        self.offset, self.places, self.seed = offset, places, seed
        self.on_finish, self.go_on = on_finish, go_on
        self.device = sampler.lm.device
        self.num_rows = len(prompts) * params.n
        self.group = [row // params.n for row in range(self.num_rows)]
        self.limits = [limits[group] for group in self.group]
        self.eos = torch.tensor(sampler.eos_token_ids, device=self.device)
        self.rollouts: list[Rollout | None] = [None] * self.num_rows
        self.answers: dict[int, Future[NextTurn | None]] = {}
        self.stops = StopTexts(sampler.tokenizer, params.stop)
        self.decoder = make_decoder(
            sampler.lm,
            [prompt.token_ids for prompt in prompts],
            self.group,
            max_new_tokens=max(self.limits),
            pad_token_id=sampler.pad_token_id,
            keeps_rows=go_on is not None,
        )

    @torch.inference_mode()
    def run(self) -> list[Rollout]:
        """The last turn of each row, in order."""
        dtype = self.sampler.autocast_dtype
        cast = torch.autocast(self.device.type, dtype) if dtype else nullcontext()
        with cast:
            self._take_first_turn()
            if self.go_on is not None:
                self._take_later_turns()
        return [rollout for rollout in self.rollouts if rollout is not None]

    def _take_first_turn(self) -> None:
        # one number per row of the call, live or not: dropping a row moves no other row's draws
        drawn = [_draw(self.seed, place, self.params) for place in self.places]
        self.uniform_TR = torch.cat(drawn).T.contiguous().to(self.device)
        self._sample(self.decoder.begin(), self.limits)

    def _take_later_turns(self) -> None:
        """Turns until each row is over; a turn begins when all environments have replied."""
        token_ids = [[*self.prompts[group].token_ids] for group in self.group]
        rows = list(range(self.num_rows))
        for turn in count(1):
            following = self._await_replies(rows)
            rows = [*following]
            if not rows:
                return
            for row, after in following.items():
                token_ids[row] += [*self._last_turn(row).token_ids, *after.token_ids]
            for some in self.decoder.batches(rows, [token_ids[row] for row in rows]):
                self._take_turn(turn, some, token_ids, following)

    def _await_replies(self, rows: Sequence[int]) -> dict[int, NextTurn]:
        """The next turns of the rows that have one; the others are handed out."""
        following: dict[int, NextTurn] = {}
        for row in rows:
            after = self.answers.pop(row).result()
            if after is not None:
                following[row] = after
            elif self.on_finish is not None:
                self.on_finish(self.offset + row, self._last_turn(row))
        return following

    def _take_turn(
        self,
        turn: int,
        rows: list[int],
        token_ids: Sequence[Sequence[int]],
        following: Mapping[int, NextTurn],
    ) -> None:
        seed, one = seed_of_turn(self.seed, turn), replace(self.params, n=1)
        self.uniform_TR = torch.zeros(self.params.max_tokens, self.num_rows)
        for row in rows:
            place = self.places[self.group[row]] * self.params.n + row % self.params.n
            self.uniform_TR[:, row] = _draw(seed, place, one)[0]
        self.uniform_TR = self.uniform_TR.to(self.device)
        limits = [0] * self.num_rows
        for row in rows:
            limits[row] = following[row].max_tokens
        step = self.decoder.resume(
            rows, [token_ids[row] for row in rows], max_new_tokens=max(limits)
        )
        self._sample(step, limits)

    def _sample(self, step: tuple[Tensor, Tensor], limits: Sequence[int]) -> None:
        """One turn of the rows. limits: most tokens, by number of the row."""
        max_tokens = max(limits)
        limits_R = torch.tensor(limits, device=self.device)
        shape = (self.num_rows, max_tokens)
        self.tokens_RT = torch.zeros(shape, dtype=torch.long, device=self.device)
        self.logprobs_RT = torch.zeros(shape, device=self.device)
        logits, rows = step
        is_limited = int(limits_R[rows].min()) < max_tokens
        for t in range(max_tokens):
            tokens, logprobs = choose_tokens(logits, self.uniform_TR[t, rows], self.params)
            self.tokens_RT[rows, t], self.logprobs_RT[rows, t] = tokens, logprobs.float()
            ended = torch.isin(tokens, self.eos) | self._at_stop_text(rows, t + 1)
            self._finish(rows[ended], t + 1, "stop")
            if t + 1 == max_tokens:
                self._finish(rows[~ended], t + 1, "length")
                break
            if is_limited:
                is_full = ~ended & (limits_R[rows] == t + 1)
                self._finish(rows[is_full], t + 1, "length")
                ended = ended | is_full
            if bool(ended.all()):
                break
            logits, rows = self.decoder.step(tokens, ended)

    def _at_stop_text(self, rows: Tensor, length: int) -> Tensor:
        """Whether each row's last token completes a stop text."""
        if not self.stops:
            return torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        last = self.tokens_RT[rows, max(0, length - self.stops.window) : length].tolist()
        return torch.tensor(self.stops.ended(last), dtype=torch.bool, device=self.device)

    def _finish(self, rows: Tensor, length: int, reason: Literal["stop", "length"]) -> None:
        if not len(rows):
            return
        tokens = self.tokens_RT[rows, :length].tolist()
        logprobs = self.logprobs_RT[rows, :length].tolist()
        for row, ids, values in zip(rows.tolist(), tokens, logprobs, strict=True):
            turn = finished_rollout(
                self.sampler.tokenizer,
                self.prompts[self.group[row]],
                ids,
                values,
                finish_reason=reason,
                policy_version=self.sampler.version,
                params=self.params,
            )
            self.rollouts[row] = turn
            if self.go_on is not None:
                self.answers[row] = self.go_on(self.offset + row, turn)
            elif self.on_finish is not None:
                self.on_finish(self.offset + row, turn)

    def _last_turn(self, row: int) -> Rollout:
        turn = self.rollouts[row]
        assert turn is not None
        return turn


def _draw(seed: int, place: int, params: SamplingParams) -> Tensor:
    """Numbers in [0, 1) of one prompt's rows [n, T]."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr((seed, place)).encode()))
    return torch.rand(params.n, params.max_tokens, generator=generator)
