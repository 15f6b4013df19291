"""The plain torch engine: one process, full weights or LoRA, on CPU, CUDA or MPS."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from rlcli.causal_lm import CausalLM
from rlcli.config.schema import Config
from rlcli.engines.base import PolicyObjective
from rlcli.engines.critic import Critic
from rlcli.engines.export import TensorFiles, save_pretrained
from rlcli.engines.logprobs import Extra, TokenStats, response_stats
from rlcli.engines.meter import Meter
from rlcli.engines.optimizer import Updater, learning_rate_factor
from rlcli.engines.packing import (
    MicroBatch,
    PackedRows,
    RowIndex,
    index_rows,
    learning_rows,
    mini_batches,
    pack_rows,
    plan_micro_batches,
    take_rows,
)
from rlcli.errors import TrainingError
from rlcli.types import Advantages, AnnotatedBatch, Batch, StepRecord

MAX_SKIPPED_UPDATES = 3


class TorchEngine:
    """Policy, reference, critic and their optimizers in this process."""

    def __init__(
        self,
        config: Config,
        policy: CausalLM,
        *,
        total_steps: int,
        pad_token_id: int,
        sampler_is_exact: bool,
        autocast_dtype: torch.dtype | None = None,
        peft_model: PeftModel | None = None,
        reference: CausalLM | None = None,
        critic: Critic | None = None,
    ) -> None:
        self.config, self.policy, self.reference, self.critic = config, policy, reference, critic
        self.peft_model = peft_model
        self.total_steps = total_steps
        self.pad_token_id = pad_token_id
        self.sampler_is_exact = sampler_is_exact
        self.autocast_dtype = autocast_dtype
        train = config.train
        self.policy_updater = Updater(
            policy.model.named_parameters(), train, lr=train.lr, grad_clip=train.grad_clip
        )
        self.critic_updater = None
        if critic is not None:
            self.critic_updater = Updater(
                critic.named_parameters(),
                train,
                lr=config.critic.lr,
                grad_clip=config.critic.grad_clip,
            )

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.policy.device

    def all_reduce(self, values: Tensor, /) -> Tensor:
        """One process: the sum over ranks is the value itself."""
        return values

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters of the policy by name, adapters apart."""
        return iter(self.policy.model.named_parameters())

    # -- passes ---------------------------------------------------------------------------------

    def _cast(self) -> AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def _plan(
        self, rows: Sequence[int], index: RowIndex, *, max_tokens: int | None = None
    ) -> list[MicroBatch]:
        train = self.config.train
        tokens = train.tokens_per_micro_batch if train.dynamic_batch else None
        by_rows = not train.dynamic_batch and max_tokens is None
        return plan_micro_batches(
            rows,
            index,
            max_tokens=max_tokens or tokens,
            max_rows=train.rows_per_micro_batch if by_rows else None,
        )

    def _stats(self, lm: CausalLM, rows: PackedRows, extra: Extra | None = None) -> TokenStats:
        with self._cast():
            return response_stats(
                lm,
                rows,
                temperature=self.config.rollout.temperature,
                pad_token_id=self.pad_token_id,
                extra=extra,
            )

    @torch.no_grad()
    def _sweep(
        self, batch: Batch, rows: Sequence[int], compute: Callable[[PackedRows], Sequence[Tensor]]
    ) -> list[Tensor]:
        """[B, T] per output of `compute`, which maps packed rows to values per response token."""
        limit = self.config.ref.tokens_per_micro_batch
        index = index_rows(batch)
        out: list[Tensor] = []
        with _evaluating(self.policy.model, self.critic):
            for micro in self._plan(rows, index, max_tokens=limit):
                packed = pack_rows(batch, micro.rows, index, self.device)
                values = compute(packed)
                if not out:
                    shape = batch.token_ids_BT.shape
                    out = [torch.zeros(shape, device=self.device) for _ in values]
                for block, value in zip(out, values, strict=True):
                    unpacked = packed.unpack(value.float())
                    block[list(micro.rows), : unpacked.shape[1]] = unpacked
        return out

    def annotate(self, batch: Batch, objective: PolicyObjective) -> AnnotatedBatch:
        """The batch plus what the models say of it, computing only what the run reads.

        The sampler's own log-probs serve as old ones where it runs this very model in float32,
        and hold their place where the update takes its own.
        """
        rows = range(len(batch.lengths_B))
        sampled = old = batch.rollout_logprobs_BT.to(self.device)
        reference = values = squares = None
        is_same = self.sampler_is_exact and not objective.compares_sampler
        skip_pass = is_same or objective.uses_sampler_logprobs
        skip_pass = skip_pass or self._is_on_policy(batch, objective)
        if objective.needs_sum_pi_squared:

            def with_squares(packed: PackedRows) -> Sequence[Tensor]:
                stats = self._stats(self.policy, packed, "sum_pi_squared")
                assert stats.sum_pi_squared_N is not None
                return stats.logprobs_N, stats.sum_pi_squared_N

            trainer_old, squares = self._sweep(batch, rows, with_squares)
            old = old if skip_pass else trainer_old
        elif not skip_pass:
            (old,) = self._sweep(batch, rows, self._logprobs)
        if objective.needs_reference:
            reference = self._reference_logprobs(batch, rows)
        if self.critic is not None:
            (values,) = self._sweep(batch, rows, lambda p: (self._values(p),))
        known: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(Batch)}
        moved: dict[str, Any] = {
            k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in known.items()
        }
        moved["rollout_logprobs_BT"] = sampled
        return AnnotatedBatch(
            **moved,
            old_logprobs_BT=old,
            ref_logprobs_BT=reference,
            values_BT=values,
            sum_pi_squared_BT=squares,
        )

    def _logprobs(self, packed: PackedRows) -> Sequence[Tensor]:
        return (self._stats(self.policy, packed).logprobs_N,)

    def _values(self, packed: PackedRows) -> Tensor:
        assert self.critic is not None
        with self._cast():
            return self.critic(packed)

    def _reference_logprobs(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        if self.peft_model is not None:
            off = self.peft_model.disable_adapter()
            reference = self.policy
        else:
            assert self.reference is not None
            off, reference = nullcontext(), self.reference
        with off:
            (out,) = self._sweep(batch, rows, lambda p: (self._stats(reference, p).logprobs_N,))
        return out

    def _is_on_policy(self, batch: Batch, objective: PolicyObjective) -> bool:
        """Whether every rollout is learned from once, by the very policy that sampled it.

        Without dropout its old log-probs are those of the update itself: the ratio is 1.
        """
        train = self.config.train
        is_whole = not (self.config.lora.rank and self.config.lora.dropout)
        is_once = train.ppo_epochs == 1 and len(batch.prompt_ids) <= train.mini_batch_prompts
        reads = objective.reads_old_logprobs or objective.uses_sampler_logprobs
        return is_whole and is_once and not reads

    # -- learning -------------------------------------------------------------------------------

    def update(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        objective: PolicyObjective,
        *,
        step: int,
    ) -> StepRecord:
        """All epochs over the step's rollouts: the critic first, then the policy."""
        meter = Meter()
        factor = learning_rate_factor(self.config.train, step=step, total_steps=self.total_steps)
        critic = self.config.critic
        if self.critic is not None:
            size = critic.mini_batch_prompts or self.config.train.mini_batch_prompts
            for _ in range(critic.epochs):
                for rows in mini_batches(batch, advantages, size):
                    self._update_critic(batch, advantages, objective, rows, factor, meter)
        if self.critic is None or step >= critic.warmup_steps:
            for epoch in range(self.config.train.ppo_epochs):
                size = self.config.train.mini_batch_prompts
                for rows in mini_batches(batch, advantages, size):
                    seed = zlib.crc32(repr((self.config.run.seed, step, epoch, rows[0])).encode())
                    self._update_policy(batch, advantages, objective, rows, factor, meter, seed)
        return meter.record() | {"lr": self.config.train.lr * factor}

    def _update_policy(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        objective: PolicyObjective,
        rows: Sequence[int],
        factor: float,
        meter: Meter,
        seed: int,
    ) -> None:
        selected_BT = self._select(batch, advantages, objective, rows, seed)
        counts = self._counts(advantages, objective, rows)
        self.policy.model.train()
        self.policy_updater.zero_grad()
        index = index_rows(batch)
        learning = learning_rows(advantages, rows) if objective.needs_advantage else rows
        plan = self._plan(learning, index)
        is_on_policy = self._is_on_policy(batch, objective)
        is_first = "sampler/prob_gap" not in meter.sums
        extra: Extra = "entropy_grad" if objective.has_entropy_bonus else "entropy"
        for micro in plan:
            packed = pack_rows(batch, micro.rows, index, self.device)
            stats = self._stats(self.policy, packed, extra)
            assert stats.entropy_N is not None
            width = packed.mask_bT.shape[1]
            some = take_rows(batch, micro.rows, width, self.device)
            aims = take_rows(advantages, micro.rows, width, self.device)
            chosen = selected_BT[list(micro.rows), :width] if selected_BT is not None else None
            logprobs_bT = packed.unpack(stats.logprobs_N)
            entropy_bT = packed.unpack(stats.entropy_N)
            if is_on_policy:
                some = replace(some, old_logprobs_BT=logprobs_bT.detach())
            token_loss = objective.policy_loss(logprobs_bT, entropy_bT, some, aims, chosen)
            assert aims.loss_mask_BT is not None
            loss = objective.aggregate(token_loss.loss_BT, aims.loss_mask_BT, counts)
            loss.backward()
            meter.add_loss("policy", loss)
            meter.add_tokens(token_loss.stats_BT, aims.loss_mask_BT)
            if is_first:
                gap_bT = (logprobs_bT.detach().exp() - some.rollout_logprobs_BT.exp()).abs()
                meter.add_tokens({"sampler/prob_gap": gap_bT}, aims.loss_mask_BT)
        if plan:
            meter.note("batch/samples", len(plan[0].rows))
            meter.note("batch/tokens", plan[0].num_tokens)
        else:
            self.policy_updater.set_zero_grad()
            meter.add_loss("policy", torch.zeros(()))
        self._step(self.policy_updater, "policy", factor, meter)
        self._note_the_rest(batch, advantages, rows, learning, meter)

    def _note_the_rest(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        rows: Sequence[int],
        learning: Sequence[int],
        meter: Meter,
    ) -> None:
        """Entropy of rollouts that were not computed: the mean of -log p estimates it."""
        meter.add_rows(len(learning), len(rows))
        if rest := sorted(set(rows) - set(learning)):
            assert advantages.loss_mask_BT is not None
            surprise_BT = -batch.rollout_logprobs_BT[rest].to(self.device)
            meter.add_tokens({"entropy": surprise_BT}, advantages.loss_mask_BT[rest])

    def _update_critic(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        objective: PolicyObjective,
        rows: Sequence[int],
        factor: float,
        meter: Meter,
    ) -> None:
        assert self.critic is not None
        assert self.critic_updater is not None
        counts = self._counts(advantages, objective, rows)
        self.critic.train()
        self.critic_updater.zero_grad()
        index = index_rows(batch)
        for micro in self._plan(rows, index):
            packed = pack_rows(batch, micro.rows, index, self.device)
            width = packed.mask_bT.shape[1]
            some = take_rows(batch, micro.rows, width, self.device)
            aims = take_rows(advantages, micro.rows, width, self.device)
            token_loss = objective.value_loss(
                packed.unpack(self._values(packed)),
                some,
                aims,
                cliprange=self.config.critic.cliprange_value,
            )
            assert aims.loss_mask_BT is not None
            loss = objective.aggregate(token_loss.loss_BT, aims.loss_mask_BT, counts)
            loss.backward()
            meter.add_loss("critic", loss)
            meter.add_tokens(token_loss.stats_BT, aims.loss_mask_BT)
        self._step(self.critic_updater, "critic", factor, meter)

    def _counts(
        self, advantages: Advantages, objective: PolicyObjective, rows: Sequence[int]
    ) -> Tensor:
        assert advantages.loss_mask_BT is not None
        return self.all_reduce(objective.count(advantages.loss_mask_BT[list(rows)]))

    def _select(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        objective: PolicyObjective,
        rows: Sequence[int],
        seed: int,
    ) -> Tensor | None:
        """[B, T] tokens the loss treats apart, chosen over the whole mini-batch."""
        if not objective.selects:
            return None
        width = batch.token_ids_BT.shape[1]
        (now,) = self._sweep(batch, rows, self._logprobs)
        some = take_rows(batch, rows, width, self.device)
        aims = take_rows(advantages, rows, width, self.device)
        chosen = objective.select(now[list(rows)], some, aims, seed)
        assert chosen is not None
        out = torch.zeros_like(now, dtype=torch.bool)
        out[list(rows)] = chosen
        return out

    def _step(self, updater: Updater, name: str, factor: float, meter: Meter) -> None:
        norm, taken = updater.step(factor)
        meter.end_mini_batch(name, norm, taken=taken)
        if updater.skipped_in_a_row >= MAX_SKIPPED_UPDATES:
            raise TrainingError(
                f"the {name}'s gradient was not finite {MAX_SKIPPED_UPDATES} updates in a row; "
                "the weights are those of the last good update.\n"
                "Lower train.lr, or resume from the last checkpoint with another run.seed."
            )

    # -- files ----------------------------------------------------------------------------------

    def state(self) -> TensorFiles:
        """Weights and optimizer moments of policy and critic, as they are."""
        updaters = {"policy": self.policy_updater, "critic": self.critic_updater}
        return TensorFiles({k: u.state(k) for k, u in updaters.items() if u is not None})

    def load_state(self, folder: Path) -> None:
        """What was saved into `folder`, to the bit."""
        for name, updater in (("policy", self.policy_updater), ("critic", self.critic_updater)):
            if updater is not None:
                updater.load_state(name, load_file(folder / f"{name}.safetensors"))

    def save_model(self, folder: Path, tokenizer: Any, *, merge_lora: bool) -> None:
        """The policy in Hugging Face format, in the dtype it came in."""
        save_pretrained(self.policy, self.peft_model, folder, tokenizer, merge_lora=merge_lora)


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
