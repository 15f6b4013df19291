"""Call every judge of a configuration once, and score answers known to be bad."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from rlcli.config.rewards import JudgeConfig
from rlcli.errors import Paused, RewardError
from rlcli.rewards.judge import JudgeScorer
from rlcli.rewards.judge.budget import price_of
from rlcli.rewards.judge.check import QUESTION, Probe, probe_members
from rlcli.rewards.judge.providers import PROVIDERS
from rlcli.types import Prompt, Reward

TALKED_ROUND = 0.3
"""Mean score of bad answers, 0 to 1, from which a policy finds what the judge falls for."""


def check_judges(
    config: JudgeConfig, env: Mapping[str, str], *, lang: str = "en", has_canaries: bool = True
) -> tuple[list[dict[str, Any]], list[str], RewardError | None]:
    """(a report on each judge, notes, the first error). `check_judge` has been asked before."""
    reports: list[dict[str, Any]] = []
    notes: list[str] = []
    error: RewardError | None = None
    for probe in probe_members(config, env, lang=lang):
        report = _report(probe, env)
        error = error or probe.error
        if has_canaries and probe.verdict.score is not None:
            report["canaries"] = _canaries(probe.config, env, lang=lang)
        reports.append(report)
        notes += [*probe.notes, *_verdicts(report)]
    return reports, notes, error


def _report(probe: Probe, env: Mapping[str, str]) -> dict[str, Any]:
    """Report on one judge, with the name of its key's variable, never the key."""
    verdict, access = probe.verdict, probe.access
    keys = PROVIDERS[access.provider].keys
    tokens = [int(verdict.usage[f"{way}_tokens"]) for way in ("input", "output")]
    price = price_of(probe.config)
    is_priced = price is not None and verdict.score is not None and any(tokens)
    fault = None if verdict.fault is None else str(verdict.fault)
    return {
        "provider": access.provider,
        "model": access.model,
        "answered_by": verdict.model,
        "base_url": access.base_url,
        "key": next((name for name in keys if env.get(name, "").strip()), None),
        "seconds": round(probe.seconds, 3),
        "score": verdict.score,
        "scale": list(probe.template.scale),
        "reason": verdict.reason,
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "usd_per_1000_calls": 1000 * price.cost_usd(*tokens) if price and is_priced else None,
        "canaries": None,
        "error": fault,
    }


def _canaries(config: JudgeConfig, env: Mapping[str, str], *, lang: str) -> list[float | None]:
    """Scores, 0 to 1, of a few bad answers to the small question; None where one is unscored."""
    alone = config.model_copy(update={"canary_every": 1, "votes": 1, "cache": "off"})
    prompt = Prompt(id="canary", messages=QUESTION, token_ids=(), ground_truth="2")
    with closing(JudgeScorer(alone, env=env, lang=lang)) as scorer:
        rewards: list[Reward] = []
        for future in scorer.canaries(0, [prompt]):
            try:
                rewards.append(future.result())
            except Paused as error:
                rewards.append(Reward(value=None, error=str(error)))
    return [reward.value for reward in rewards]


def _verdicts(report: Mapping[str, Any]) -> list[str]:
    """Reasons not to trust a judge."""
    found: list[str] = []
    low, high = report["scale"]
    if report["score"] is not None and report["score"] < (low + high) / 2:
        found.append(
            f"{report['model']} gives {report['score']:g} to a right answer, on a scale of {low} "
            f"to {high}. Look at the template: --rm_prompt_preset, --rm_scoring_prompt."
        )
    known = [score for score in report["canaries"] or () if score is not None]
    if known and sum(known) / len(known) > TALKED_ROUND:
        found.append(
            f"{report['model']} gives {sum(known) / len(known):.2f} of 1 to answers that are known "
            "to be bad: a policy may learn to talk it round. Try another --rm_model or template."
        )
    return found
