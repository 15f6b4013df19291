"""The numbers of a trial as JSON; unknown values are null."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlcli.rewards import PASSED, pass_scores
from rlcli.rewards.judge.providers import members_of
from rlcli.rewards.normalize import moments_of
from rlcli.tools.reward_test.labels import is_binary
from rlcli.tools.reward_test.measures import (
    agreement,
    auc,
    mean,
    mean_ranks,
    quantile,
    repeatability,
    spearman,
)
from rlcli.tools.reward_test.planning import TrialPlan
from rlcli.tools.reward_test.price import is_price_known
from rlcli.tools.reward_test.rows import Case
from rlcli.tools.reward_test.running import Trial
from rlcli.types import Reward

TIMED_OUT = ("(reward.timeout_s)", "(reward.judge.timeout_s)")
"""Ends of the errors that name a limit of time."""
FAR = 0.5
"""Share of all places that two rankings may put one response apart."""
Scored = list[tuple[Case, Reward]]


def summarize(plan: TrialPlan, trial: Trial) -> dict[str, Any]:
    """Every number; `scores` and `wrong_scores` go by row."""
    own = list(zip(plan.cases, trial.own, strict=True))
    scores = [reward.value for reward in trial.own]
    known = [score for score in scores if score is not None]
    cost = trial.spent_usd if is_price_known(plan) else None
    rewards = [*trial.own, *(reward for _, reward in trial.others)]
    errors = Counter(reward.error for reward in rewards if reward.error is not None)
    comparison = _given(plan, own) if plan.is_given else _both(plan, own, trial.others)
    return {
        "reward": _name(plan),
        "is_judged": plan.combination.uses("judge"),
        "data": plan.data,
        "rows": len(own),
        "scored": len(known),
        "unscored": len(own) - len(known),
        "mean": mean(known),
        "min": min(known, default=None),
        "max": max(known, default=None),
        **comparison,
        "p95_s": quantile(trial.seconds, 0.95),
        "wall_s": round(trial.wall_s, 3),
        "cost_usd": cost,
        "cost_per_1000_usd": _per_1000(cost, trial.num_done),
        "timeouts": sum(n for error, n in errors.items() if any(end in error for end in TIMED_OUT)),
        "errors": [{"error": error, "count": count} for error, count in errors.most_common()],
        "repeatability": _repeatability(plan, trial),
        "normalize": _normalize(trial),
        "equal_answers": trial.equal,
        "is_whole": trial.end is None,
        "scores": scores,
    }


def _per_1000(cost: float | None, count: int) -> float | None:
    return None if cost is None or not count else 1000 * cost / count


def _name(plan: TrialPlan) -> str:
    """The settings that say what scores."""
    reward = plan.config.reward
    names = {"fn": f"reward.fn={reward.fn}", "model": f"reward.model={reward.model}"}
    if plan.combination.uses("judge"):
        judges = members_of(reward.judge)
        names["judge"] = "judge " + ", ".join(f"{one.provider} {one.model}" for one in judges)
    return ", ".join(names[source] for source in plan.combination.sources.values())


def _both(plan: TrialPlan, own: Scored, others: Scored) -> dict[str, Any]:
    """Compare rows' own answers with answers of other rows."""
    by_row = {id(case.row): reward.value for case, reward in others}
    wrong = [score for score in by_row.values() if score is not None]
    pairs = [
        (case, reward, label) for label, side in ((1, own), (0, others)) for case, reward in side
    ]
    scored = [(label, reward.value) for _, reward, label in pairs if reward.value is not None]
    passes = pass_scores(plan.config.reward, [reward for _, reward, _ in pairs])
    if passes is None:
        agreed, disagreements = None, _not_above(own, others)
    else:
        agreed, disagreements = _held_against(pairs, passes)
    return {
        "auc": auc([label for label, _ in scored], [score for _, score in scored]),
        "agreement": agreed,
        "wrong_rows": len(others),
        "wrong_unscored": len(others) - len(wrong),
        "wrong_mean": mean(wrong),
        "wrong_min": min(wrong, default=None),
        "wrong_max": max(wrong, default=None),
        "wrong_scores": [by_row.get(id(case.row)) for case, _ in own],
        "disagreements": disagreements,
    }


def _given(plan: TrialPlan, own: Scored) -> dict[str, Any]:
    """Compare scores of responses with their human labels."""
    labelled = [(c, r, c.label) for c, r in own if c.label is not None and r.value is not None]
    labels = [label for _, _, label in labelled]
    scores = [reward.value for _, reward, _ in labelled if reward.value is not None]
    passes = pass_scores(plan.config.reward, [reward for _, reward, _ in labelled])
    if passes is None or not is_binary(labels):
        agreed, disagreements = None, _far_apart(labelled, labels, scores)
    else:
        agreed, disagreements = _held_against(labelled, passes)
    return {
        "label": plan.label,
        "labelled": len(labels),
        "label_mean": mean(labels),
        "auc": auc(labels, scores),
        "spearman": spearman(labels, scores),
        "agreement": agreed,
        "disagreements": disagreements,
    }


def _held_against(
    cases: Sequence[tuple[Case, Reward, float]], passes: Sequence[float | None]
) -> tuple[float | None, list[dict[str, Any]]]:
    """(share where passing and label agree, the rest, the clearest first)."""
    known = [
        (case, reward, label, score)
        for (case, reward, label), score in zip(cases, passes, strict=True)
        if score is not None
    ]
    agreed = agreement([k[2] for k in known], [k[3] >= PASSED for k in known])
    off = [k for k in known if (k[3] >= PASSED) != (k[2] == 1)]
    off.sort(key=lambda k: -abs(k[3] - k[2]))
    return agreed, [_shown(case, reward) for case, reward, _, _ in off]


def _far_apart(
    labelled: Sequence[tuple[Case, Reward, float]],
    labels: Sequence[float],
    scores: Sequence[float],
) -> list[dict[str, Any]]:
    """Responses that label and score rank far from each other, the farthest first."""
    pairs = zip(mean_ranks(labels), mean_ranks(scores), strict=True)
    gaps = [abs(label - score) / len(labels) for label, score in pairs]
    order = sorted(range(len(gaps)), key=lambda at: -gaps[at])
    return [_shown(*labelled[at][:2]) for at in order if gaps[at] > FAR]


def _not_above(own: Scored, others: Scored) -> list[dict[str, Any]]:
    """Other rows' answers that score as high as the row's own, without a mark to pass."""
    own_of = {id(case.row): reward.value for case, reward in own}
    found: list[tuple[float, dict[str, Any]]] = []
    for case, reward in others:
        mine = own_of[id(case.row)]
        if mine is not None and reward.value is not None and reward.value >= mine:
            found.append((reward.value - mine, _shown(case, reward) | {"own_score": mine}))
    return [shown for _, shown in sorted(found, key=lambda pair: -pair[0])]


def _shown(case: Case, reward: Reward) -> dict[str, Any]:
    return {
        "id": case.row.id,
        "kind": case.kind,
        "response": case.response,
        "ground_truth": case.row.ground_truth,
        "label": case.label,
        "score": reward.value,
        "reason": reward.reason,
        "error": reward.error,
    }


def _repeatability(plan: TrialPlan, trial: Trial) -> dict[str, Any] | None:
    found = repeatability(trial.verdicts)
    if found is None:
        return None
    count = sum(len(scores) > 1 for scores in trial.verdicts)
    return {"responses": count, "times": plan.repeat, "equal": found[0], "largest": found[1]}


def _normalize(trial: Trial) -> dict[str, float] | None:
    """What reward.normalize=fixed takes for a reward model: of all responses scored here."""
    if not trial.raw:
        return None
    moments = moments_of(trial.raw)
    return {"mean": moments.mean, "std": moments.std}


def saved_rows(plan: TrialPlan, trial: Trial) -> list[dict[str, Any]]:
    """One object per response, in the format that `--responses` reads."""
    own = zip(plan.cases, trial.own, strict=True)
    return [
        _shown(case, reward)
        | {
            "prompt": case.row.prompt,
            "data_source": case.row.data_source,
            "extra_info": dict(case.row.extra_info),
            "parts": dict(reward.parts),
        }
        for case, reward in (*own, *trial.others)
    ]
