"""The ALGORITHMS table: every estimator and policy loss by name, without importing torch.

The names of an estimator's or loss's keyword-only arguments select its inputs. They determine
what a run needs (a critic, groups, greedy rollouts, reward parts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Need = Literal["critic", "group", "greedy", "parts", "sum_pi_squared"]

NEED_OF_INPUT: dict[str, Need] = {
    "values_BT": "critic",
    "group_B": "group",
    "baseline_B": "greedy",
    "parts": "parts",
    "sum_pi_squared_BT": "sum_pi_squared",
}
"""Input name -> requirement of the run that provides it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One table row: the function's path, its inputs and its title.

    inputs: batch tensors it reads. settings: `algorithm.` settings it reads. select: for losses, a
    function that selects tokens once per mini-batch over all ranks, by select_settings and random
    numbers. needs_advantage: for losses, whether a rollout whose advantages are all 0 has loss and
    gradient 0.
    """

    path: str
    title: str
    inputs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    select: str | None = None
    select_settings: tuple[str, ...] = ()
    aggregations: tuple[str, ...] | None = None
    is_per_token: bool = False
    is_per_sequence: bool = False
    needs_advantage: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        """Requirements of the run."""
        return frozenset(NEED_OF_INPUT[name] for name in self.inputs if name in NEED_OF_INPUT)

    @property
    def credits_turns(self) -> bool:
        """For estimators: whether a turn's reward counts only for its own turn and those before."""
        return "earned_BT" in self.inputs or "gamma_turn" in self.settings


PER_TOKEN = ("gae", "reinforce_plus_plus", "otb")


def _estimator(
    name: str, title: str, inputs: tuple[str, ...], settings: tuple[str, ...] = ()
) -> tuple[str, Entry]:
    return name, Entry(
        path=f"rlcli.algos.advantages:{name}",
        title=title,
        inputs=inputs,
        settings=settings,
        is_per_token=name in PER_TOKEN,
    )


GROUP = ("group_B", "valid_B")
BY_TURN = (*GROUP, "earned_BT")

ESTIMATORS: dict[str, Entry] = dict(
    [
        _estimator(
            "gae",
            "generalised advantage estimation, arXiv 1506.02438",
            ("values_BT", "valid_B", "all_reduce"),
            ("gamma", "lam", "gamma_turn"),
        ),
        _estimator("grpo", "group-relative, arXiv 2402.03300", BY_TURN, ("scale_by_std",)),
        _estimator("grpo_passk", "best of the group, arXiv 2503.19595", GROUP, ("scale_by_std",)),
        _estimator("rloo", "leave-one-out, arXiv 2402.14740", BY_TURN),
        _estimator(
            "reinforce_plus_plus",
            "discounted returns, whitened, arXiv 2501.03262",
            ("valid_B", "all_reduce"),
            ("gamma", "gamma_turn"),
        ),
        _estimator(
            "reinforce_plus_plus_baseline",
            "group baseline, whitened, arXiv 2501.03262",
            (*BY_TURN, "all_reduce"),
        ),
        _estimator("remax", "greedy baseline, arXiv 2310.10505", ("baseline_B", "valid_B")),
        _estimator("opo", "length-weighted baseline, arXiv 2505.23585", GROUP),
        _estimator("gpg", "group policy gradient, arXiv 2504.02546", (*GROUP, "all_reduce")),
        _estimator(
            "gdpo",
            "per reward part, arXiv 2601.05242",
            (*GROUP, "parts", "part_weights", "all_reduce"),
            ("scale_by_std",),
        ),
        _estimator(
            "otb", "optimal token baseline", (*GROUP, "old_logprobs_BT", "sum_pi_squared_BT")
        ),
    ]
)


def _loss(
    name: str,
    title: str,
    settings: tuple[str, ...] = (),
    *,
    module: str = "losses",
    select_settings: tuple[str, ...] = (),
    aggregations: tuple[str, ...] | None = None,
) -> tuple[str, Entry]:
    select = f"rlcli.algos.{module}:select_{name}" if select_settings else None
    return name, Entry(
        path=f"rlcli.algos.{module}:{name}",
        title=title,
        inputs=("selected_BT",) if select else (),
        settings=settings,
        select=select,
        select_settings=select_settings,
        aggregations=aggregations,
        is_per_sequence=name == "gmpo",
        needs_advantage=name not in PENALISED,
    )


CLIP = ("clip_low", "clip_high")
PENALISED = ("kl_cov", "dro")
"""Losses with a gradient even for tokens without an advantage."""

LOSSES: dict[str, Entry] = dict(
    [
        _loss("clip", "clipped ratio with dual clip, arXiv 1707.06347", (*CLIP, "clip_ratio_c")),
        _loss("gspo", "sequence ratio, arXiv 2507.18071", CLIP),
        _loss("cispo", "clipped importance weight, arXiv 2506.13585", CLIP),
        _loss(
            "gmpo",
            "geometric mean, arXiv 2507.20673",
            CLIP,
            aggregations=("seq_mean_token_mean",),
        ),
        _loss("sapo", "soft gate, arXiv 2511.20347", ("tau_pos", "tau_neg")),
        _loss("gpg", "plain policy gradient, arXiv 2504.02546"),
        _loss(
            "clip_cov",
            "clip, high-covariance tokens cut out, arXiv 2505.22617",
            CLIP,
            module="covariance",
            select_settings=(*CLIP, "clip_cov_ratio", "clip_cov_low", "clip_cov_high"),
        ),
        _loss(
            "kl_cov",
            "high-covariance tokens penalised, arXiv 2505.22617",
            ("kl_cov_coef",),
            module="covariance",
            select_settings=("kl_cov_ratio",),
        ),
        _loss("dppo_tv", "total-variation trust region, arXiv 2602.04879", (*CLIP, "clip_ratio_c")),
        _loss("dppo_kl", "KL trust region, arXiv 2602.04879", (*CLIP, "clip_ratio_c")),
        _loss("dro", "quadratic log-ratio penalty, arXiv 2405.19107", ("dro_beta",)),
    ]
)
