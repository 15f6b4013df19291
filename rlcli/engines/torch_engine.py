"""The plain torch engine: full weights or LoRA on CPU, CUDA or MPS; every rank has all of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlcli.algos.algorithm import Algorithm
from rlcli.config.schema import Config, TrainConfig
from rlcli.distributed.collectives import named_for_others
from rlcli.engines.export import TensorFiles, save_pretrained
from rlcli.engines.forward_passes import ForwardPasses
from rlcli.engines.logprobs import Extra
from rlcli.engines.merge import Whole
from rlcli.engines.micro_batches import MiniBatch, index_rows, mini_batches, take_rows
from rlcli.engines.optimizer import Updater, learning_rate_factor
from rlcli.engines.state_on_ranks import read_on_all
from rlcli.engines.update_metrics import UpdateMetrics
from rlcli.errors import TrainingError
from rlcli.models.causal_lm import CausalLM
from rlcli.run_dir.checkpoint import EngineState
from rlcli.types import Advantages, AnnotatedBatch, Batch, StepRecord

MAX_SKIPPED_UPDATES = 3


class TorchEngine(ForwardPasses):
    """Policy, reference, critic and their optimizers in this process.

    Each rank computes the rows it holds of every mini-batch; gradients are added up.
    """

    loads_sharded = False
    """Whether models come in shards, never whole; see rlcli.engines.sharded_model."""
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
        """The sum over ranks."""
        return self.ranks.all_reduce(values)

    def all_reduce_max(self, values: Tensor, /) -> Tensor:
        """The maximum over ranks."""
        return self.ranks.all_reduce(values, op=dist.ReduceOp.MAX)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters of the policy by name, adapters apart."""
        return iter(self.policy.model.named_parameters())

    # -- learning -------------------------------------------------------------------------------

    @named_for_others
    def update(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        algorithm: Algorithm,
        *,
        step: int,
    ) -> StepRecord:
        """All epochs over the step's rollouts: the critic first, then the policy."""
        meter, train, critic = UpdateMetrics(), self.config.train, self.config.critic
        factor = learning_rate_factor(train, step=step, total_steps=self.total_steps)

        def cut(size: int, *, needs_advantage: bool) -> list[MiniBatch]:
            return mini_batches(
                batch,
                advantages,
                size,
                algorithm=algorithm,
                all_reduce=self.all_reduce,
                needs_advantage=needs_advantage,
            )

        if self.critic is not None:
            some = cut(critic.mini_batch_prompts or train.mini_batch_prompts, needs_advantage=False)
            for _ in range(critic.epochs):
                for mini in some:
                    self._update_critic(batch, advantages, algorithm, mini, factor, meter)
        if self.critic is None or step >= critic.warmup_steps:
            some = cut(train.mini_batch_prompts, needs_advantage=algorithm.needs_advantage)
            for epoch in range(train.ppo_epochs):
                for mini in some:
                    seed = (self.config.run.seed, step, epoch)
                    self._update_policy(batch, advantages, algorithm, mini, factor, meter, seed)
        return meter.record(self.ranks) | {"lr": train.lr * factor}

    def _update_policy(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        algorithm: Algorithm,
        mini: MiniBatch,
        factor: float,
        meter: UpdateMetrics,
        seed: tuple[int, ...],
    ) -> None:
        selected_BT = self._select(batch, advantages, algorithm, mini.rows, seed)
        self.policy.model.train()
        self.policy_updater.zero_grad()
        index = index_rows(batch)
        plan = self._plan(mini.learning, index)
        is_unmoved = self._is_unmoved(algorithm, meter)
        is_reference = is_unmoved and self._is_reference(algorithm)
        is_first = not meter.mini_batches["policy"]
        extra: Extra = "entropy_grad" if algorithm.has_entropy_bonus else "entropy"
        for micro in plan:
            packed = self._pack(batch, micro, index)
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
            token_loss = algorithm.policy_loss(logprobs_bT, entropy_bT, some, aims, chosen)
            assert aims.loss_mask_BT is not None
            loss = algorithm.aggregate(token_loss.loss_BT, aims.loss_mask_BT, mini.counts)
            self.policy_updater.backward(loss)
            meter.add_loss("policy", loss)
            meter.add_tokens(token_loss.stats_BT, aims.loss_mask_BT)
            if is_first:
                gap_bT = (logprobs_bT.detach().exp() - some.rollout_logprobs_BT.exp()).abs()
                meter.add_tokens({"sampler/prob_gap": gap_bT}, aims.loss_mask_BT)
        if plan and not plan[0].is_filler:
            meter.note("batch/samples", len(plan[0].rows))
            meter.note("batch/tokens", plan[0].num_tokens)
        if not mini.num_learning:
            self.policy_updater.set_zero_grad()
            meter.add_loss("policy", torch.zeros(()))
        self._step(self.policy_updater, "policy", factor, meter)
        self._note_the_rest(batch, advantages, mini, meter)

    def _is_unmoved(self, algorithm: Algorithm, meter: UpdateMetrics) -> bool:
        """Whether the policy is still what it was before the update: its ratio is exactly 1.

        Computed again it would be 1 but for rounding, whose sign decides the gradient of |lr|:
        other micro-batches, or ranks, would learn something else.
        """
        is_known = self.is_whole and not algorithm.uses_sampler_logprobs
        return is_known and not meter.has_moved("policy")

    def _note_the_rest(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        mini: MiniBatch,
        meter: UpdateMetrics,
    ) -> None:
        """Entropy of rollouts that were not computed: the mean of -log p estimates it."""
        meter.add_rows(mini.num_learning, int(mini.counts[1]))
        if rest := sorted(set(mini.rows) - set(mini.learning)):
            assert advantages.loss_mask_BT is not None
            surprise_BT = -batch.rollout_logprobs_BT[rest].to(self.device)
            meter.add_tokens({"entropy": surprise_BT}, advantages.loss_mask_BT[rest])

    def _update_critic(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        algorithm: Algorithm,
        mini: MiniBatch,
        factor: float,
        meter: UpdateMetrics,
    ) -> None:
        assert self.critic is not None
        assert self.critic_updater is not None
        self.critic.train()
        self.critic_updater.zero_grad()
        index = index_rows(batch)
        for micro in self._plan(mini.rows, index):
            packed = self._pack(batch, micro, index)
            values_N = self._values(packed)
            if micro.is_filler:
                self.critic_updater.backward(0.0 * values_N.sum())
                continue
            width = packed.mask_bT.shape[1]
            some = take_rows(batch, micro.rows, width, self.device)
            aims = take_rows(advantages, micro.rows, width, self.device)
            token_loss = algorithm.value_loss(
                packed.unpack(values_N),
                some,
                aims,
                cliprange=self.config.critic.cliprange_value,
            )
            assert aims.loss_mask_BT is not None
            loss = algorithm.aggregate(token_loss.loss_BT, aims.loss_mask_BT, mini.counts)
            self.critic_updater.backward(loss)
            meter.add_loss("critic", loss)
            meter.add_tokens(token_loss.stats_BT, aims.loss_mask_BT)
        self._step(self.critic_updater, "critic", factor, meter)

    def _select(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        algorithm: Algorithm,
        rows: Sequence[int],
        seed: tuple[int, ...],
    ) -> Tensor | None:
        """Tokens [B, T] that the loss selects, once per mini-batch over all ranks; None if none."""
        if not algorithm.selects:
            return None
        width = batch.token_ids_BT.shape[1]
        (now,) = self._sweep(batch, rows, self._logprobs)
        some = take_rows(batch, rows, width, self.device)
        aims = take_rows(advantages, rows, width, self.device)
        draws = _draw(batch, rows, seed).to(self.device)
        gather = self.ranks.gather_tensors
        chosen = algorithm.select(now[list(rows)], some, aims, draws_BT=draws, gather=gather)
        assert chosen is not None
        out = torch.zeros_like(now, dtype=torch.bool)
        out[list(rows)] = chosen
        return out

    def _step(self, updater: Updater, name: str, factor: float, meter: UpdateMetrics) -> None:
        norm, taken = updater.step(factor)
        meter.end_mini_batch(name, norm, taken=taken)
        if updater.skipped_in_a_row >= MAX_SKIPPED_UPDATES:
            raise TrainingError(
                f"the {name}'s gradient was not finite {MAX_SKIPPED_UPDATES} updates in a row; "
                "the weights are those of the last good update.\n"
                "Lower train.lr, or resume from the last checkpoint with another run.seed."
            )

    # -- files ----------------------------------------------------------------------------------

    @named_for_others
    def state(self, folder: Path | None = None) -> EngineState:
        """Weights and optimizer moments of policy and critic, as they are."""
        files = {name: updater.state(name) for name, updater in self._updaters.items()}
        return TensorFiles(files, is_copy=self.state_is_copy)

    @named_for_others
    def load_state(self, folder: Path) -> None:
        """What was saved into `folder`, to the bit."""
        with self._reading(folder) as tensors:
            for name, updater in self._updaters.items():
                updater.load_state(name, tensors)

    @property
    def _updaters(self) -> dict[str, Updater]:
        """By the name of their model in a saved state."""
        found = {"policy": self.policy_updater, "critic": self.critic_updater}
        return {name: updater for name, updater in found.items() if updater is not None}

    def _reading(self, folder: Path) -> AbstractContextManager[Mapping[str, Tensor]]:
        """The tensors of a saved state."""
        return read_on_all(self.ranks, folder)

    @named_for_others
    def save_model(self, folder: Path | None, tokenizer: Any, *, merge_lora: bool) -> None:
        """The policy in Hugging Face format, in the dtype it came in; by rank 0.

        If weights are sharded, all ranks take part in gathering them.
        """
        whole = self._gatherer()
        if whole is not None:
            merge_lora = self.ranks.first(merge_lora)
        elif folder is None:
            return
        save_pretrained(
            self.policy, self.peft_model, folder, tokenizer, merge_lora=merge_lora, whole=whole
        )

    def _gatherer(self) -> Whole | None:
        """Gathers sharded weights; None if every rank has all of them."""
        return None


def _draw(batch: Batch, rows: Sequence[int], seed: tuple[int, ...]) -> Tensor:
    """[B, T] numbers in [0, 1) for the tokens of `rows`, the same on whichever rank they are."""
    draws_BT = torch.zeros(len(rows), batch.token_ids_BT.shape[1])
    lengths, groups = batch.lengths_B.tolist(), batch.group_B.tolist()
    generators: dict[int, torch.Generator] = {}
    for place, row in enumerate(rows):
        number = batch.prompt_numbers[groups[row]]
        if number not in generators:
            own = zlib.crc32(repr((*seed, number)).encode())
            generators[number] = torch.Generator().manual_seed(own)
        length = lengths[row]
        draws_BT[place, :length] = torch.rand(length, generator=generators[number])
    return draws_BT
