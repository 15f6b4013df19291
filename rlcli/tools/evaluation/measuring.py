"""Sample and score responses, and summarize the scores."""

from __future__ import annotations

import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlcli.envs.agent_sampler import AgentSampler
from rlcli.envs.measures import measure_episodes
from rlcli.envs.run import episode_sampler, episode_scorer, is_scored_by_env, needs_scorer
from rlcli.envs.sampler import EpisodeSampler
from rlcli.envs.scorer import EnvironmentScorer, accuracy_of
from rlcli.errors import RlcliError
from rlcli.models.causal_lm import load_causal_lm
from rlcli.monitor.monitor import rollout_row
from rlcli.rewards import PASSED, build_scorer, probe_reward
from rlcli.rewards.base import Scorer
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.native import NativeSampler
from rlcli.tools.evaluation.estimates import METHOD, confidence_interval, pass_at_k
from rlcli.tools.evaluation.planning import EvalPlan
from rlcli.tools.load_policy import kept_scale, load_policy
from rlcli.trainer.build_engine import compute_dtype, set_up_cpu
from rlcli.trainer.build_sampler import make_sampler
from rlcli.types import Reward, Rollout

LOG = logging.getLogger(__name__)


Progress = Callable[[str, int, int], None]
"""Called with (phase, responses done, responses in total)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Responses, n per prompt and adjacent, with their rewards."""

    rollouts: Sequence[Rollout]
    rewards: Sequence[Reward]
    sample_s: float
    wall_s: float


def run_evaluation(
    plan: EvalPlan,
    *,
    env: Mapping[str, str],
    progress: Progress,
) -> Sampled:
    """n responses per prompt, sampled and scored; the reward first, which is likelier to fail.

    What loading finds is logged.

    Raises: RewardError, ModelError; Paused when a judge is done with us.
    """
    reward, lang = plan.config.reward, plan.config.run.lang
    scorer = None
    if needs_scorer(plan.config, plan.environment):
        for note in probe_reward(reward, env=env, lang=lang):
            LOG.info(note)
        scorer = build_scorer(
            reward,
            env=env,
            lang=lang,
            model_dir=plan.reward_dir,
            device=plan.device,
            environment=EnvironmentScorer(),
        )
    if plan.environment is not None or scorer is None:
        scorer = episode_scorer(scorer)
    try:
        if plan.checkpoint is not None:
            scorer.load_state(kept_scale(plan.checkpoint))
        native = build_policy(plan)
        sampler: NativeSampler | EpisodeSampler | AgentSampler = native
        if plan.environment is not None and plan.dialogue is not None:
            sampler = episode_sampler(native, plan.environment, plan.dialogue, plan.config)
        try:
            return _sample_and_score(plan, sampler, scorer, progress)
        finally:
            sampler.close()
    finally:
        scorer.close()


def build_policy(plan: EvalPlan) -> NativeSampler:
    """The sampler of the planned model."""
    config, device = plan.config, plan.device
    dtype = compute_dtype(config, device)
    if plan.checkpoint is None:
        trust = config.model.trust_remote_code
        path = str(plan.folder)
        policy = load_causal_lm(path, dtype=dtype, device=device, trust_remote_code=trust)
        adapters = None
    else:
        policy, adapters = load_policy(config, plan.checkpoint, device=device, dtype=dtype)
    set_up_cpu(device, policy.model.num_parameters())
    for note in policy.notes:
        LOG.info(note)
    # adapters are float32 on weights that need not be
    is_mixed = adapters is not None and dtype is torch.bfloat16
    return make_sampler(
        policy,
        plan.tokenizer,
        plan.model_config,
        plan.folder,
        max_num_seqs=config.rollout.max_num_seqs,
        autocast_dtype=dtype if is_mixed else None,
    )


def _sample_and_score(
    plan: EvalPlan,
    sampler: NativeSampler | EpisodeSampler | AgentSampler,
    scorer: Scorer,
    progress: Progress,
) -> Sampled:
    total = len(plan.prompts) * plan.n
    params = SamplingParams(
        n=plan.n,
        max_tokens=plan.config.data.max_response_tokens,
        temperature=plan.temperature,
        keep_special_tokens=plan.config.reward.keep_special_tokens,
        stop=tuple(plan.config.rollout.stop),
    )
    # that of a run's own evaluation: the same settings give its numbers again
    seed = zlib.crc32(repr((plan.config.run.seed, 0, "evaluate")).encode())
    futures: dict[int, Future[Reward]] = {}
    rollouts: list[Rollout] = []
    begun = time.perf_counter()

    def submit(index: int, rollout: Rollout) -> None:
        futures[len(rollouts) + index] = scorer.submit(rollout)
        progress("sampling", len(futures), total)

    progress("sampling", 0, total)
    per_call = max(1, sampler.max_num_seqs // plan.n)
    for start in range(0, len(plan.prompts), per_call):
        some = plan.prompts[start : start + per_call]
        prompt_indices = range(start, start + len(some))
        drawn = sampler.generate(
            some, params, seed=seed, prompt_indices=prompt_indices, on_finish=submit
        )
        # log-probs of every token would fill the memory and are not used here
        rollouts += [replace(rollout, logprobs=()) for rollout in drawn]
    sampled = time.perf_counter()
    rewards: list[Reward] = []
    for index in range(total):
        progress("scoring", index, total)
        rewards.append(futures[index].result())
    progress("scoring", total, total)
    return Sampled(
        rollouts=rollouts,
        rewards=scorer.normalize(rewards, update_stats=False),
        sample_s=sampled - begun,
        wall_s=time.perf_counter() - begun,
    )


def check_scored(sampled: Sampled) -> None:
    """Raises: RlcliError if none of the responses has a score."""
    if all(reward.value is None for reward in sampled.rewards):
        total, first = len(sampled.rewards), sampled.rewards[0].error
        raise RlcliError(f"none of {total} responses could be scored. The first: {first}")


def summarize(plan: EvalPlan, sampled: Sampled) -> dict[str, Any]:
    """The scores as JSON; what cannot be said is null.

    counted: prompts with at least k scored responses, by k; null where the reward has no scale to
    pass on. An unscored response is left out of its prompt's n.
    """
    values = [reward.value for reward in sampled.rewards]
    scored = [value for value in values if value is not None]
    lengths = [rollout.num_tokens for rollout in sampled.rollouts]
    cut = sum(rollout.finish_reason == "length" for rollout in sampled.rollouts)
    scored_by_env = is_scored_by_env(plan.config, plan.environment)
    passing = accuracy_of(plan.config, sampled.rewards, scored_by_env=scored_by_env)
    scores = {k: _prompt_scores(passing or [], n=plan.n, k=k) for k in plan.k}
    return {
        "model": plan.model,
        "data": plan.config.data.val,
        "rows": len(plan.prompts),
        "dropped": plan.dropped,
        "n": plan.n,
        "temperature": plan.temperature,
        "seed": plan.config.run.seed,
        "max_response_tokens": plan.config.data.max_response_tokens,
        "k": list(plan.k),
        **{f"pass@{k}": _mean(found) for k, found in scores.items()},
        "ci95": {
            f"pass@{k}": list(confidence_interval(found)) if found else None
            for k, found in scores.items()
        },
        "ci_method": METHOD,
        "counted": {
            f"pass@{k}": None if passing is None else len(found) for k, found in scores.items()
        },
        "reward_mean": _mean(scored),
        "unscored": len(values) - len(scored),
        "response_length_mean": _mean(lengths),
        "truncated_share": cut / len(lengths),
        **measure_episodes(sampled.rollouts, sampled.rewards),
        "wall_s": round(sampled.wall_s, 3),
        "tokens_per_s": round(sum(lengths) / max(sampled.sample_s, 1e-9), 1),
    }


def _prompt_scores(values: Sequence[float | None], *, n: int, k: int) -> list[float]:
    """pass@k of every prompt that has k scored responses."""
    found = []
    for start in range(0, len(values), n):
        scored = [value for value in values[start : start + n] if value is not None]
        if len(scored) >= k:
            found.append(pass_at_k(len(scored), sum(value >= PASSED for value in scored), k))
    return found


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def saved_rows(sampled: Sampled) -> list[dict[str, Any]]:
    """One object per response, as in a run's rollouts."""
    pairs = zip(sampled.rollouts, sampled.rewards, strict=True)
    return [rollout_row(rollout, reward) for rollout, reward in pairs]
