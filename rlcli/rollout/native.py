"""The built-in sampler: flat decoding with our own key-value buffers, in the trainer's process.

A group's prompt is read once and finished rows leave the batch. The same seed and the same
prompts give the same rollouts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from rlcli.models.forward import CausalLM, decode
from rlcli.rollout.base import OnFinish, SamplingParams, finished_rollout
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
        limits: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """params.n rollouts per prompt, prompts in order.

        limits: most tokens of each prompt's rollouts, where these are fewer than params.max_tokens.
        """
        prompt_indices = range(len(prompts)) if prompt_indices is None else prompt_indices
        limits = [params.max_tokens] * len(prompts) if limits is None else limits
        per_call = max(1, self.max_num_seqs // params.n)
        out: list[Rollout] = []
        was_training = self.lm.model.training
        self.lm.model.eval()
        try:
            for start in range(0, len(prompts), per_call):
                end = start + per_call
                offset = start * params.n
                call = _Call(self, prompts[start:end], params, limits[start:end], offset, on_finish)
                out.extend(call.run(seed=seed, prompt_indices=prompt_indices[start:end]))
        finally:
            self.lm.model.train(was_training)
        return out


class _Call:
    """One batch of rows from prefill to the last EOS."""

    def __init__(
        self,
        sampler: NativeSampler,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        limits: Sequence[int],
        offset: int,
        on_finish: OnFinish | None,
    ) -> None:
        self.sampler, self.prompts, self.params = sampler, prompts, params
        self.offset, self.on_finish = offset, on_finish
        self.device = sampler.lm.device
        self.num_rows = len(prompts) * params.n
        self.group = [row // params.n for row in range(self.num_rows)]
        self.eos = torch.tensor(sampler.eos_token_ids, device=self.device)
        self.max_tokens = max(limits)
        self.is_limited = min(limits) < self.max_tokens
        self.limits_R = torch.tensor(limits, device=self.device).repeat_interleave(params.n)
        shape = (self.num_rows, self.max_tokens)
        self.tokens_RT = torch.zeros(shape, dtype=torch.long, device=self.device)
        self.logprobs_RT = torch.zeros(shape, device=self.device)
        self.rollouts: list[Rollout | None] = [None] * self.num_rows
        self.stops = StopTexts(sampler.tokenizer, params.stop)

    @torch.inference_mode()
    def run(self, *, seed: int, prompt_indices: Sequence[int]) -> list[Rollout]:
        """All rollouts of the call, in order."""
        # one number per row of the call, live or not: dropping a row moves no other row's draws
        drawn = [self._draw(seed, place) for place in prompt_indices]
        self.uniform_TR = torch.cat(drawn).T.contiguous().to(self.device)
        dtype = self.sampler.autocast_dtype
        cast = torch.autocast(self.device.type, dtype) if dtype else nullcontext()
        with cast:
            steps = decode(
                self.sampler.lm,
                [prompt.token_ids for prompt in self.prompts],
                self.group,
                max_new_tokens=self.max_tokens,
                pad_token_id=self.sampler.pad_token_id,
            )
            logits, rows = next(steps)
            for t in range(self.max_tokens):
                tokens, logprobs = self._choose(logits, rows, t)
                self.tokens_RT[rows, t], self.logprobs_RT[rows, t] = tokens, logprobs.float()
                ended = torch.isin(tokens, self.eos) | self._at_stop_text(rows, t + 1)
                self._finish(rows[ended], t + 1, "stop")
                if t + 1 == self.max_tokens:
                    self._finish(rows[~ended], t + 1, "length")
                    break
                if self.is_limited:
                    is_full = ~ended & (self.limits_R[rows] == t + 1)
                    self._finish(rows[is_full], t + 1, "length")
                    ended = ended | is_full
                if bool(ended.all()):
                    break
                logits, rows = steps.send((tokens, ended))
        return [rollout for rollout in self.rollouts if rollout is not None]

    def _draw(self, seed: int, place: int) -> Tensor:
        """Numbers in [0, 1) of one prompt's rows [n, T]."""
        generator = torch.Generator().manual_seed(zlib.crc32(repr((seed, place)).encode()))
        return torch.rand(self.params.n, self.params.max_tokens, generator=generator)

    def _choose(self, logits: Tensor, rows: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """(token, log-prob) number t of these rows."""
        return choose_tokens(logits, self.uniform_TR[t, rows], self.params)

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
        tokenizer = self.sampler.tokenizer
        for row, ids, values in zip(rows.tolist(), tokens, logprobs, strict=True):
            rollout = finished_rollout(
                tokenizer,
                self.prompts[self.group[row]],
                ids,
                values,
                finish_reason=reason,
                policy_version=self.sampler.version,
                params=self.params,
            )
            self.rollouts[row] = rollout
            if self.on_finish is not None:
                self.on_finish(self.offset + row, rollout)
