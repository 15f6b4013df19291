"""Combine an estimator, a loss and the terms around them into the algorithm of a run.

Estimators and losses are pure functions whose parameter names select their inputs; only this
module passes them. A custom function is named as `package.module:function`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlcli.algos.aggregation import aggregate, count
from rlcli.algos.importance_sampling import importance_weights, mismatch, rejection_mask
from rlcli.algos.kl import AdaptiveKL, FixedKL, kl
from rlcli.algos.losses import value_loss
from rlcli.algos.masked_stats import alone, global_means, masked_mean
from rlcli.algos.registry import ESTIMATORS, LOSSES, NEED_OF_INPUT, Entry, Need
from rlcli.algos.reward_shaping import overlong_penalty, rewards_before, token_rewards
from rlcli.config.schema import Config
from rlcli.errors import ConfigError
from rlcli.types import Advantages, AllReduce, AnnotatedBatch, Gather, TokenLoss

BATCH_INPUTS = (
    "group_B",
    "valid_B",
    "values_BT",
    "baseline_B",
    "parts",
    "old_logprobs_BT",
    "rollout_logprobs_BT",
    "ref_logprobs_BT",
    "sum_pi_squared_BT",
)
METRIC_NAMES = {"clip_frac": "clip_fraction", "clip_frac_lower": "clip_fraction_lower"}
"""Statistic -> metric name in the guides, if it differs."""


def _own_entry(spec: str, kind: str, positional: int) -> Entry:
    """Build the entry of a custom function from its signature. Raises: ConfigError."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = _function(spec)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"algorithm.{kind}={spec} cannot be imported: {error}. "
            "Give package.module:function, importable from the working directory."
        ) from error
    names = list(inspect.signature(function).parameters)[positional:]
    settings = set(type(Config().algorithm).model_fields)
    known = {*BATCH_INPUTS}
    more = {"all_reduce", "part_weights", "earned_BT"}
    known |= more if kind == "advantage" else {"correction_BT"}
    unknown = [n for n in names if n not in known | settings]
    if unknown:
        raise ConfigError(
            f"algorithm.{kind}={spec} asks for {', '.join(unknown)}, which no run has.\n"
            f"It may ask for: {', '.join(sorted(known))}, or any algorithm setting by name."
        )
    return Entry(
        path=spec,
        title=inspect.getdoc(function) or spec,
        inputs=tuple(n for n in names if n in known - {"correction_BT"}),
        settings=tuple(n for n in names if n in settings),
    )


def estimator_entry(spec: str) -> Entry:
    """The table's row, or one made for `package.module:function`. Raises: ConfigError."""
    return _own_entry(spec, "advantage", 2) if ":" in spec else ESTIMATORS[spec]


def loss_entry(spec: str) -> Entry:
    """The table's row, or one made for `package.module:function`. Raises: ConfigError."""
    return _own_entry(spec, "loss", 4) if ":" in spec else LOSSES[spec]


def _function(path: str) -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    return getattr(importlib.import_module(module_name), name)


class Algorithm:
    """The maths of one run. Its only state is the KL controller's coefficient."""

    def __init__(self, config: Config, *, corrects_sampler: bool) -> None:
        self.settings = config.algorithm
        self.corrects_sampler = corrects_sampler
        self.max_response_tokens = config.data.max_response_tokens
        self.part_weights: Mapping[str, float] = config.reward.weights
        self.estimator = estimator_entry(self.settings.advantage)
        self.loss = loss_entry(self.settings.loss)
        self._estimate = _function(self.estimator.path)
        self._loss = _function(self.loss.path)
        self._select = _function(self.loss.select) if self.loss.select else None
        s = self.settings
        if s.kl_controller == "adaptive":
            self.kl = AdaptiveKL(s.kl_coef, target=s.kl_target, horizon=s.kl_horizon)
        else:
            self.kl = FixedKL(s.kl_coef)

    @property
    def needs(self) -> frozenset[Need]:
        """Requirements: critic, group, greedy rollouts, reward parts, sum of pi^2."""
        inputs = (*self.estimator.inputs, *self.loss.inputs)
        return frozenset(NEED_OF_INPUT[name] for name in inputs if name in NEED_OF_INPUT)

    @property
    def needs_reference(self) -> bool:
        """Whether a KL term is enabled."""
        return self.settings.needs_reference

    @property
    def needs_sum_pi_squared(self) -> bool:
        """Whether the estimator reads sum over the vocabulary of pi^2."""
        return "sum_pi_squared" in self.needs

    @property
    def uses_sampler_logprobs(self) -> bool:
        """Whether the sampler's log-probs replace the trainer's old log-probs."""
        return self.settings.use_rollout_logprobs

    @property
    def compares_sampler(self) -> bool:
        """Whether the trainer's log-probs are needed in addition to the sampler's."""
        return self.corrects_sampler or self.settings.rejection != "off"

    @property
    def has_entropy_bonus(self) -> bool:
        """Whether gradients flow through the entropy."""
        return self.settings.entropy_coef > 0

    @property
    def needs_advantage(self) -> bool:
        """Whether a rollout whose advantages are all 0 has neither loss nor gradient."""
        terms = self.settings.kl_loss or self.has_entropy_bonus
        return self.loss.needs_advantage and not terms

    @property
    def reads_old_logprobs(self) -> bool:
        """Whether old log-probs are needed before the update, or more than once in it."""
        reads = "old_logprobs_BT" in self.estimator.inputs
        return reads or self.needs_reference or self.compares_sampler or self.selects

    @property
    def selects(self) -> bool:
        """Whether the loss selects tokens once per mini-batch."""
        return self._select is not None

    def advantages(
        self,
        batch: AnnotatedBatch,
        *,
        all_reduce: AllReduce,
        all_reduce_max: AllReduce = alone,
    ) -> Advantages:
        """Compute advantages from scores, with the loss mask and weights for the update.

        Updates the adaptive KL controller by one step.
        """
        s = self.settings
        mask_BT = batch.response_mask_BT * batch.valid_B[:, None]
        scores_B = batch.rewards_B
        if s.overlong_penalty:
            scores_B = scores_B + overlong_penalty(
                batch.lengths_B,
                max_tokens=self.max_response_tokens,
                buffer_fraction=s.overlong_buffer,
                factor=s.overlong_factor,
            )
        stats, kl_BT = self._reference_gap(batch, mask_BT, all_reduce)
        rewards_BT = token_rewards(
            scores_B,
            batch.response_mask_BT,
            turn_rewards_BT=batch.turn_rewards_BT,
            kl_BT=kl_BT,
            kl_coef=self.kl.coef,
        )
        earned_BT = None
        if batch.turn_rewards_BT is not None:
            earned_BT = rewards_before(rewards_BT, batch.response_mask_BT)
        if kl_BT is not None:
            num_rollouts = int(all_reduce(batch.valid_B.sum()))
            self.kl.update(stats["kl_in_reward"], num_rollouts)
        loss_mask_BT, correction_BT, more = self._sampler_gap(
            batch, mask_BT, all_reduce, all_reduce_max
        )
        estimate = self._call(
            self._estimate,
            self.estimator,
            (rewards_BT, batch.response_mask_BT),
            batch,
            {"all_reduce": all_reduce, "part_weights": self.part_weights, "earned_BT": earned_BT},
        )
        if not isinstance(estimate, Advantages):
            raise ConfigError(
                f"algorithm.advantage={self.settings.advantage} returned "
                f"{type(estimate).__name__}. Return rlcli.types.Advantages(advantages_BT=...)."
            )
        return replace(
            estimate,
            loss_mask_BT=loss_mask_BT,
            correction_BT=correction_BT,
            stats={**estimate.stats, **stats, **more},
        )

    def _reference_gap(
        self, batch: AnnotatedBatch, mask_BT: Tensor, all_reduce: AllReduce
    ) -> tuple[dict[str, float], Tensor | None]:
        """(KL metrics to the reference, per-token KL for the reward)."""
        if batch.ref_logprobs_BT is None:
            return {}, None
        old, ref = batch.old_logprobs_BT, batch.ref_logprobs_BT
        num_tokens = all_reduce(mask_BT.sum()).clamp(min=1)
        total = all_reduce((kl(old, ref, "k1") * mask_BT).sum())
        stats = {"kl_divergence": float(total / num_tokens)}
        if not self.settings.kl_in_reward:
            return stats, None
        kl_BT = kl(old, ref, self.settings.kl_reward_type)
        # the controller's KL is the mean over rollouts of their mean per token, as in verl
        per_row_B = masked_mean(kl_BT, mask_BT, dim=1)
        num_rows = all_reduce((mask_BT.sum(1) > 0).sum()).clamp(min=1)
        stats["kl_in_reward"] = float(all_reduce(per_row_B.sum()) / num_rows)
        stats["kl_coef"] = self.kl.coef
        return stats, kl_BT

    def _sampler_gap(
        self,
        batch: AnnotatedBatch,
        mask_BT: Tensor,
        all_reduce: AllReduce,
        all_reduce_max: AllReduce,
    ) -> tuple[Tensor, Tensor | None, dict[str, float]]:
        """(loss mask, importance weights, metrics) from trainer against sampler log-probs."""
        s = self.settings
        old, sampled = batch.old_logprobs_BT, batch.rollout_logprobs_BT
        stats: dict[str, float] = {}
        loss_mask_BT, weights_BT = mask_BT, None
        if s.overlong_filter:
            loss_mask_BT = loss_mask_BT * (~batch.truncated_B)[:, None]
        if old is not sampled:
            found = mismatch(
                old, sampled, mask_BT, all_reduce=all_reduce, all_reduce_max=all_reduce_max
            )
            stats.update({f"sampler/{name}": value for name, value in found.items()})
        if s.rejection != "off":
            keep_BT = rejection_mask(
                old,
                sampled,
                mask_BT,
                kind=s.rejection,
                low=s.rejection_low,
                high=s.rejection_high,
            )
            kept = global_means(mask_BT, keep_BT.to(old.dtype), all_reduce=all_reduce)
            stats["sampler/rejected"] = 1.0 - kept[0]
            loss_mask_BT = loss_mask_BT * keep_BT
        if self.corrects_sampler:
            weights_BT = importance_weights(
                old,
                sampled,
                mask_BT,
                level="sequence" if s.correction == "sequence" else "token",
                cap=s.correction_cap,
                floor=s.correction_floor,
            )
            (mean,) = global_means(mask_BT, weights_BT, all_reduce=all_reduce)
            stats["sampler/weight_mean"] = mean
        return loss_mask_BT, weights_BT, stats

    def select(
        self,
        logprobs_BT: Tensor,
        batch: AnnotatedBatch,
        advantages: Advantages,
        *,
        draws_BT: Tensor,
        gather: Gather,
    ) -> Tensor | None:
        """Tokens that the loss treats specially, bool [B, T], from current log-probs."""
        if self._select is None:
            return None
        assert advantages.loss_mask_BT is not None
        return self._select(
            logprobs_BT,
            batch.old_logprobs_BT,
            advantages.advantages_BT,
            advantages.loss_mask_BT,
            draws_BT=draws_BT,
            gather=gather,
            **self._settings_of(self.loss.select_settings),
        )

    def policy_loss(
        self,
        logprobs_BT: Tensor,
        entropy_BT: Tensor,
        batch: AnnotatedBatch,
        advantages: Advantages,
        selected_BT: Tensor | None,
    ) -> TokenLoss:
        """Policy loss - entropy_coef * entropy + kl_loss_coef * KL, per token."""
        s, mask_BT = self.settings, advantages.loss_mask_BT
        assert mask_BT is not None
        extra: dict[str, Any] = {"selected_BT": selected_BT}
        parameters = inspect.signature(self._loss).parameters
        if "correction_BT" in parameters:
            extra["correction_BT"] = advantages.correction_BT
        tensors = (logprobs_BT, batch.old_logprobs_BT, advantages.advantages_BT, mask_BT)
        base: TokenLoss = self._call(self._loss, self.loss, tensors, batch, extra)
        loss_BT = base.loss_BT
        if advantages.correction_BT is not None and "correction_BT" not in parameters:
            loss_BT = loss_BT * advantages.correction_BT
        if s.entropy_coef > 0:
            loss_BT = loss_BT - s.entropy_coef * torch.where(mask_BT > 0, entropy_BT, 0.0)
        stats = {METRIC_NAMES.get(k, k): v for k, v in base.stats_BT.items()}
        stats["entropy"] = entropy_BT.detach()
        if s.kl_loss:
            assert batch.ref_logprobs_BT is not None
            # mask the inputs, not the result: a masked-out -inf would give NaN gradients
            masked_BT = torch.where(mask_BT > 0, logprobs_BT, 0.0)
            ref_BT = torch.where(mask_BT > 0, batch.ref_logprobs_BT, 0.0)
            kl_BT = kl(masked_BT, ref_BT, s.kl_loss_type)
            loss_BT = loss_BT + s.kl_loss_coef * kl_BT
            stats["kl_loss"] = kl_BT.detach()
        return TokenLoss(loss_BT=loss_BT, stats_BT=stats)

    def value_loss(
        self, values_BT: Tensor, batch: AnnotatedBatch, advantages: Advantages, *, cliprange: float
    ) -> TokenLoss:
        """Clipped squared error of the critic against the returns, per token."""
        assert batch.values_BT is not None
        assert advantages.returns_BT is not None
        assert advantages.loss_mask_BT is not None
        base = value_loss(
            values_BT,
            batch.values_BT,
            advantages.returns_BT,
            advantages.loss_mask_BT,
            cliprange=cliprange,
        )
        stats = {f"critic/{METRIC_NAMES.get(k, k)}": v for k, v in base.stats_BT.items()}
        return TokenLoss(loss_BT=base.loss_BT, stats_BT=stats)

    def count(self, mask_BT: Tensor) -> Tensor:
        """[2]: tokens and non-empty rows of a mask."""
        return torch.stack(count(mask_BT))

    def aggregate(self, values_BT: Tensor, mask_BT: Tensor, counts: Tensor) -> Tensor:
        """Aggregate to a scalar; micro-batches that share `counts` add up to the mini-batch."""
        return aggregate(
            values_BT,
            mask_BT,
            self.settings.aggregation,
            num_tokens=float(counts[0]),
            num_sequences=float(counts[1]),
            scale_factor=self.settings.loss_scale_factor or float(self.max_response_tokens),
        )

    def _settings_of(self, names: tuple[str, ...]) -> dict[str, Any]:
        low, high = self.settings.clip_bounds
        values = {**dict(self.settings), "clip_low": low, "clip_high": high}
        return {name: values[name] for name in names}

    def _call(
        self,
        function: Callable[..., Any],
        entry: Entry,
        tensors: tuple[Any, ...],
        batch: AnnotatedBatch,
        extra: Mapping[str, Any],
    ) -> Any:
        """Call the function with all inputs and settings that its entry lists."""
        from_batch = {n: getattr(batch, n) for n in entry.inputs if n in BATCH_INPUTS}
        from_run = {n: extra[n] for n in extra if n in entry.inputs or n == "correction_BT"}
        settings = self._settings_of(entry.settings)
        return function(*tensors, **from_batch, **from_run, **settings)
