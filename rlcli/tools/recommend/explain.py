"""Explain a recommended command: settings, metrics, and errors in the guides."""

from __future__ import annotations

from typing import Any

from rlcli.algos.registry import ESTIMATORS
from rlcli.tools.recommend.advice import Advice

MATTERS = {
    "rollout.n": "answers per prompt: sampling time grows with it, noise falls",
    "train.lr": "the first to lower when a run becomes unsteady",
    "algorithm.kl_coef": "holds the policy near its start, through the reward",
    "algorithm.kl_loss_coef": "holds the policy near its start, through the loss",
    "critic.lr": "the value head starts at 0 and has to learn faster than the policy",
    "algorithm.lam": "lower: less noise, more of the critic's error",
    "algorithm.clip_high": "room upwards for rare tokens, which keeps entropy up",
    "reward.weights": "the weight of every part your function returns",
}


def settings_that_matter(advice: Advice) -> dict[str, tuple[Any, str]]:
    """Setting -> (its value in this command, what it does)."""
    config = advice.resolve()
    algorithm, values = config.config.algorithm, config.values()
    needs = ESTIMATORS[algorithm.advantage].needs
    applies = {
        "algorithm.kl_coef": algorithm.kl_in_reward,
        "algorithm.kl_loss_coef": algorithm.kl_loss,
        "critic.lr": "critic" in needs,
        "algorithm.lam": "critic" in needs,
        "algorithm.clip_high": algorithm.clip_high is not None,
        "reward.weights": "parts" in needs,
    }
    return {key: (values[key], why) for key, why in MATTERS.items() if applies.get(key, True)}


def what_to_watch(advice: Advice) -> dict[str, str]:
    """Metric -> what it should look like, and what to turn if it does not."""
    algorithm = advice.resolve().config.algorithm
    needs = ESTIMATORS[algorithm.advantage].needs
    watch: dict[str, str] = {"reward_mean": "rises; at 0 everywhere the reward reads no answer"}
    if "group" in needs:
        watch["zero_variance_share"] = (
            "share of groups that teach nothing; near 1: easier or harder prompts, or a larger n"
        )
    if "critic" in needs:
        watch["value_loss"] = "falls in the first steps; if not, raise critic.lr"
    if algorithm.needs_reference:
        watch["kl_divergence"] = "0.001 to 0.1; above: raise the KL coefficient or lower train.lr"
    watch["entropy"] = "falls slowly; a fast fall to 0 means every answer is the same"
    watch["truncated_share"] = "below 0.2; above: raise data.max_response_tokens"
    return watch


CORRECTIONS = {
    "grpo": "a reference model exists because the KL loss is on, not because of GRPO; "
    "algorithm.kl_loss=false saves it",
    "rloo": "the guides set kl_coef without use_kl_in_reward, which does nothing in verl; this "
    "preset has the KL in the reward on",
    "remax": "the guides ask for a baseline model: the baseline is the greedy answer's reward",
    "reinforce_plus_plus": "the guides call it A = R: returns are whitened over the batch",
    "dr_grpo": "the guides say it normalises globally: it only leaves the division by std out",
    "ppo": "the guides count GPUs; what decides is whether the critic's memory fits",
}
"""Algorithm -> correction of the guides."""
