"""What the models say of a batch: passes over packed micro-batches of this rank's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from rlcli.algos.algorithm import Algorithm
from rlcli.config.schema import Config
from rlcli.distributed.collectives import ALONE, Ranks, named_for_others
from rlcli.engines.critic import Critic
from rlcli.engines.logprobs import Extra, TokenStats, response_stats
from rlcli.engines.micro_batches import (
    FILLER,
    MicroBatch,
    PackedRows,
    RowIndex,
    filler_rows,
    index_rows,
    on_device,
    pack_rows,
    plan_micro_batches,
)
from rlcli.models.causal_lm import CausalLM
from rlcli.types import AnnotatedBatch, Batch


class ForwardPasses:
    """Policy, reference and critic in this process, and the passes over them."""

    in_lockstep = False
    """Whether all ranks must make the same number of passes."""

    def __init__(
        self,
        config: Config,
        policy: CausalLM,
        *,
        pad_token_id: int,
        sampler_is_exact: bool,
        autocast_dtype: torch.dtype | None = None,
        peft_model: PeftModel | None = None,
        reference: CausalLM | None = None,
        critic: Critic | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.policy, self.reference, self.critic = config, policy, reference, critic
        self.peft_model = peft_model
        self.pad_token_id = pad_token_id
        self.sampler_is_exact = sampler_is_exact
        self.autocast_dtype = autocast_dtype
        self.ranks = ranks

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.policy.device

    def _cast(self) -> AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def _plan(
        self, rows: Sequence[int], index: RowIndex, *, max_tokens: int | None = None
    ) -> list[MicroBatch]:
        """Micro-batches of this rank's `rows`; in lockstep as many as any rank has, and one."""
        train = self.config.train
        tokens = train.tokens_per_micro_batch if train.dynamic_batch else None
        by_rows = not train.dynamic_batch and max_tokens is None
        plan = plan_micro_batches(
            rows,
            index,
            max_tokens=max_tokens or tokens,
            max_num_seqs=train.micro_batch_size if by_rows else None,
        )
        if not self.in_lockstep:
            return plan
        return plan + [FILLER] * (max(1, self.ranks.largest(len(plan))) - len(plan))

    def _pack(self, batch: Batch, micro: MicroBatch, index: RowIndex) -> PackedRows:
        if micro.is_filler:
            return filler_rows(self.pad_token_id, self.device)
        return pack_rows(batch, micro.rows, index, self.device)

    def _stats(self, lm: CausalLM, rows: PackedRows, extra: Extra | None = None) -> TokenStats:
        def compute() -> tuple[Any, ...]:
            with self._cast():
                stats = response_stats(
                    lm,
                    rows,
                    temperature=self.config.rollout.temperature,
                    pad_token_id=self.pad_token_id,
                    extra=extra,
                    agree=self._agreed_chunks(lm),
                )
            return stats.logprobs_N, stats.entropy_N, stats.sum_pi_squared_N

        logprobs_N, entropy_N, squares_N = lm.run(compute)
        return TokenStats(logprobs_N=logprobs_N, entropy_N=entropy_N, sum_pi_squared_N=squares_N)

    def _agreed_chunks(self, lm: CausalLM) -> Callable[[int], int] | None:
        """What makes all ranks apply the LM head as often, if they must; see `response_stats`."""
        return None

    @torch.no_grad()
    def _sweep(
        self,
        batch: Batch,
        rows: Sequence[int],
        compute: Callable[[PackedRows], Sequence[Tensor]],
        *,
        num_outputs: int = 1,
    ) -> list[Tensor]:
        """[B, T] per output of `compute`, which maps packed rows to values per response token."""
        limit = self.config.ref.tokens_per_micro_batch
        index = index_rows(batch)
        shape = batch.token_ids_BT.shape
        out = [torch.zeros(shape, device=self.device) for _ in range(num_outputs)]
        with _evaluating(self.policy.model, self.critic):
            for micro in self._plan(rows, index, max_tokens=limit):
                packed = self._pack(batch, micro, index)
                values = compute(packed)
                if micro.is_filler:
                    continue
                for block, value in zip(out, values, strict=True):
                    unpacked = packed.unpack(value.float())
                    block[list(micro.rows), : unpacked.shape[1]] = unpacked
        return out

    @named_for_others
    def annotate(self, batch: Batch, algorithm: Algorithm) -> AnnotatedBatch:
        """The batch plus what the models say of it, computing only what the run reads.

        The sampler's own log-probs serve as old ones where it runs this very model in float32,
        and hold their place where the update takes its own.
        """
        rows = range(len(batch.lengths_B))
        sampled = old = batch.rollout_logprobs_BT.to(self.device)
        reference = values = squares = None
        is_same = self.sampler_is_exact and not algorithm.compares_sampler
        skip_pass = is_same or algorithm.uses_sampler_logprobs
        skip_pass = skip_pass or self._is_on_policy(batch, algorithm)
        if algorithm.needs_sum_pi_squared:

            def with_squares(packed: PackedRows) -> Sequence[Tensor]:
                stats = self._stats(self.policy, packed, "sum_pi_squared")
                assert stats.sum_pi_squared_N is not None
                return stats.logprobs_N, stats.sum_pi_squared_N

            trainer_old, squares = self._sweep(batch, rows, with_squares, num_outputs=2)
            old = old if skip_pass else trainer_old
        elif not skip_pass:
            (old,) = self._sweep(batch, rows, self._logprobs)
        if algorithm.needs_reference:
            is_start = self._is_reference(algorithm)
            reference = old if is_start else self._reference_logprobs(batch, rows)
        if self.critic is not None:
            (values,) = self._sweep(batch, rows, lambda p: (self._values(p),))
        here = replace(on_device(batch, self.device), rollout_logprobs_BT=sampled)
        known: dict[str, Any] = {f.name: getattr(here, f.name) for f in fields(Batch)}
        return AnnotatedBatch(
            **known,
            old_logprobs_BT=old,
            ref_logprobs_BT=reference,
            values_BT=values,
            sum_pi_squared_BT=squares,
        )

    def response_logprobs(self, batch: Batch) -> Tensor:
        """[B, T] of this rank's rows by the policy as it is; all ranks take part."""
        (out,) = self._sweep(batch, range(len(batch.lengths_B)), self._logprobs)
        return out

    def _logprobs(self, packed: PackedRows) -> Sequence[Tensor]:
        return (self._stats(self.policy, packed).logprobs_N,)

    def _values(self, packed: PackedRows) -> Tensor:
        critic = self.critic
        assert critic is not None

        def compute() -> Tensor:
            with self._cast():
                return critic(packed)

        return critic.lm.run(compute)

    def _reference_logprobs(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        if self.peft_model is not None:
            off = self.peft_model.disable_adapter()
            reference = self.policy
        else:
            assert self.reference is not None
            off, reference = self._fetched(self.reference), self.reference
        with off:
            (out,) = self._sweep(batch, rows, lambda p: (self._stats(reference, p).logprobs_N,))
        return out

    @contextmanager
    def _fetched(self, reference: CausalLM) -> Iterator[None]:
        """Inside, the reference is where it computes; with ref.offload_params only there."""
        # FSDP fetches the layers of a sharded one by itself
        is_whole = reference.root is None
        moves = is_whole and self.config.ref.offload_params and self.device.type == "cuda"
        model: Any = reference.model
        if moves:
            model.to(self.device)
        try:
            yield
        finally:
            if moves:
                model.to("cpu")

    def _is_on_policy(self, batch: Batch, algorithm: Algorithm) -> bool:
        """Whether every rollout is learned from once, by the very policy that sampled it.

        Without dropout its old log-probs are those of the update itself: the ratio is 1.
        """
        train = self.config.train
        is_once = train.ppo_epochs == 1 and batch.num_step_prompts <= train.mini_batch_prompts
        reads = algorithm.reads_old_logprobs or algorithm.uses_sampler_logprobs
        return self.is_whole and is_once and not reads

    @property
    def is_whole(self) -> bool:
        """Whether an update computes the very policy that is read: no dropout of adapters."""
        return not (self.config.lora.rank and self.config.lora.dropout)

    @property
    def has_learned(self) -> bool:
        """Whether the policy's weights have ever been changed."""
        return False

    def _is_reference(self, algorithm: Algorithm) -> bool:
        """Whether the reference has the policy's old log-probs: a KL of 0, not of rounding."""
        return not self.has_learned and not algorithm.uses_sampler_logprobs


@contextmanager
def _evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Dropout off inside, every module's mode as it was afterwards."""
    modes = [(module, module.training) for module in modules if module is not None]
    for module, _ in modes:
        module.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.train(was_training)
