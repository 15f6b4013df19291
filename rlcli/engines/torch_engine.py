"""The plain torch engine: full weights or LoRA on CPU, CUDA or MPS; every rank has all of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlcli.causal_lm import CausalLM
from rlcli.config.schema import Config, TrainConfig
from rlcli.engines.base import PolicyObjective
from rlcli.engines.export import TensorFiles, save_pretrained
from rlcli.engines.logprobs import Extra
from rlcli.engines.meter import Meter
from rlcli.engines.optimizer import Updater, learning_rate_factor
from rlcli.engines.packing import (
    index_rows,
    learning_rows,
    mini_batches,
    pack_rows,
    take_rows,
)
from rlcli.engines.passes import Passes
from rlcli.errors import TrainingError
from rlcli.types import Advantages, AnnotatedBatch, StepRecord

MAX_SKIPPED_UPDATES = 3


class TorchEngine(Passes):
    """Policy, reference, critic and their optimizers in this process.

    Several ranks compute a share of every mini-batch each and add up their gradients; all are
    called alike, with the same batch.
    """

    state_is_copy = False
    """Whether `state` gives tensors that training does not touch."""

    def __init__(
        self, config: Config, policy: CausalLM, *, total_steps: int, **passes: Any
    ) -> None:
        super().__init__(config, policy, **passes)
        self.total_steps = total_steps
        train = config.train
        self.policy_updater = self._updater(policy.model, lr=train.lr, grad_clip=train.grad_clip)
        self.critic_updater = None
        if self.critic is not None:
            self.critic_updater = self._updater(
                self.critic, lr=config.critic.lr, grad_clip=config.critic.grad_clip
            )

    def _updater(self, model: nn.Module, *, lr: float, grad_clip: float) -> Updater:
        """The optimizer of policy or critic."""
        named, train = model.named_parameters(), self.config.train
        return Updater(named, train, lr=lr, grad_clip=grad_clip, ranks=self.ranks)

    @classmethod
    def shards_weights(cls, train: TrainConfig) -> bool:
        """Whether no rank has all weights: a sampler then needs a copy."""
        return False

    @property
    def has_learned(self) -> bool:
        """See Passes."""
        return self.policy_updater.has_stepped

    def all_reduce(self, values: Tensor, /) -> Tensor:
        """Every rank has the whole batch: the sum over ranks is the value itself."""
        return values

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters of the policy by name, adapters apart."""
        return iter(self.policy.model.named_parameters())

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
        return meter.record(self.ranks) | {"lr": self.config.train.lr * factor}

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
        is_unmoved = self._is_unmoved(objective, meter)
        is_reference = is_unmoved and self._is_reference(objective)
        is_first = not meter.mini_batches["policy"]
        extra: Extra = "entropy_grad" if objective.has_entropy_bonus else "entropy"
        for micro in plan:
            packed = pack_rows(batch, micro.rows, index, self.device)
            stats = self._stats(self.policy, packed, extra)
            assert stats.entropy_N is not None
            if micro.is_filler:
                self.policy_updater.backward(0.0 * stats.logprobs_N.sum())
                continue
            width = packed.mask_bT.shape[1]
            some = take_rows(batch, micro.rows, width, self.device)
            aims = take_rows(advantages, micro.rows, width, self.device)
            chosen = selected_BT[list(micro.rows), :width] if selected_BT is not None else None
            logprobs_bT = packed.unpack(stats.logprobs_N)
            entropy_bT = packed.unpack(stats.entropy_N)
            if is_unmoved:
                some = replace(some, old_logprobs_BT=logprobs_bT.detach())
            if is_reference:
                some = replace(some, ref_logprobs_BT=logprobs_bT.detach())
            token_loss = objective.policy_loss(logprobs_bT, entropy_bT, some, aims, chosen)
            assert aims.loss_mask_BT is not None
            loss = objective.aggregate(token_loss.loss_BT, aims.loss_mask_BT, counts)
            self.policy_updater.backward(loss)
            meter.add_loss("policy", loss)
            meter.add_tokens(token_loss.stats_BT, aims.loss_mask_BT)
            if is_first:
                gap_bT = (logprobs_bT.detach().exp() - some.rollout_logprobs_BT.exp()).abs()
                meter.add_tokens({"sampler/prob_gap": gap_bT}, aims.loss_mask_BT)
        if plan and not plan[0].is_filler:
            meter.note("batch/samples", len(plan[0].rows))
            meter.note("batch/tokens", plan[0].num_tokens)
        if not learning:
            self.policy_updater.set_zero_grad()
            meter.add_loss("policy", torch.zeros(()))
        self._step(self.policy_updater, "policy", factor, meter)
        self._note_the_rest(batch, advantages, rows, learning, meter)

    def _is_unmoved(self, objective: PolicyObjective, meter: Meter) -> bool:
        """Whether the policy is still what it was before the update: its ratio is exactly 1.

        Computed again it would be 1 but for rounding, whose sign decides the gradient of |lr|:
        other micro-batches, or ranks, would learn something else.
        """
        is_known = self.is_whole and not objective.uses_sampler_logprobs
        return is_known and not meter.has_moved("policy")

    def _note_the_rest(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        rows: Sequence[int],
        learning: Sequence[int],
        meter: Meter,
    ) -> None:
        """Entropy of rollouts that were not computed: the mean of -log p estimates it."""
        if not self.ranks.is_first:
            return
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
            values_N = self._values(packed)
            if micro.is_filler:
                self.critic_updater.backward(0.0 * values_N.sum())
                continue
            width = packed.mask_bT.shape[1]
            some = take_rows(batch, micro.rows, width, self.device)
            aims = take_rows(advantages, micro.rows, width, self.device)
            token_loss = objective.value_loss(
                packed.unpack(values_N),
                some,
                aims,
                cliprange=self.config.critic.cliprange_value,
            )
            assert aims.loss_mask_BT is not None
            loss = objective.aggregate(token_loss.loss_BT, aims.loss_mask_BT, counts)
            self.critic_updater.backward(loss)
            meter.add_loss("critic", loss)
            meter.add_tokens(token_loss.stats_BT, aims.loss_mask_BT)
        self._step(self.critic_updater, "critic", factor, meter)

    def _counts(
        self, advantages: Advantages, objective: PolicyObjective, rows: Sequence[int]
    ) -> Tensor:
        assert advantages.loss_mask_BT is not None
        return objective.count(advantages.loss_mask_BT[list(rows)])

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
        files = {name: each.state(name) for name, each in updaters.items() if each is not None}
        return TensorFiles(files, is_copy=self.state_is_copy)

    def load_state(self, folder: Path) -> None:
        """What was saved into `folder`, to the bit."""
        for name, updater in (("policy", self.policy_updater), ("critic", self.critic_updater)):
            if updater is not None:
                with self.ranks.reading(folder / f"{name}.safetensors") as tensors:
                    updater.load_state(name, tensors)

    def save_model(self, folder: Path | None, tokenizer: Any, *, merge_lora: bool) -> None:
        """The policy in Hugging Face format, in the dtype it came in; by rank 0."""
        if folder is None:
            return
        save_pretrained(self.policy, self.peft_model, folder, tokenizer, merge_lora=merge_lora)
