"""The interval of a held-out score, and the verdict on a score that falls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from rlcli.config.schema import Config
from rlcli.monitor.health import Health, HealthLog, last_verdicts
from rlcli.monitor.held_out import half_width

NAME = "held_out_falling"


def verdicts(
    scores: list[float],
    *,
    width: float = 0.05,
    reward: Callable[[int], float] = lambda step: 0.5,
    key: str = "eval/pass@1",
) -> list[list[str]]:
    """Names of the new verdicts after each evaluation, 10 training steps between two."""
    health = Health(Config())
    found = []
    for index, score in enumerate(scores):
        for step in range(10 * index - 9, 10 * index + 1):
            if step > 0:
                health.after(step, {"reward_mean": reward(step)})
        record = {"step": 10 * index, key: score, "eval/ci95": width}
        found.append([verdict.name for verdict in health.after_evaluation(record)])
    return found


def test_the_interval_of_a_mean_reward_is_the_normal_one() -> None:
    # mean 2, standard deviation 1 (n - 1), n = 3: 1.96 / sqrt(3)
    assert half_width([1.0, 2.0, 3.0], is_rate=False) == pytest.approx(1.96 / math.sqrt(3))
    assert half_width([1.0], is_rate=False) == math.inf


def test_the_interval_of_a_pass_rate_is_agresti_and_coulls() -> None:
    # 60 of 100: n~ = 103.8416, p~ = (60 + 1.9208) / n~ = 0.59630
    expected = 1.96 * math.sqrt(0.596301 * 0.403699 / 103.8416)
    assert half_width([1.0] * 60 + [0.0] * 40, is_rate=True) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_the_interval_of_a_pass_rate_is_never_empty(score: float) -> None:
    assert half_width([score] * 50, is_rate=True) > 0.02


def test_a_score_below_its_start_in_two_evaluations_is_reported_once() -> None:
    assert verdicts([0.5, 0.4, 0.41, 0.40]) == [[], [], [NAME], []]


def test_a_score_below_its_best_counts_like_one_below_its_start() -> None:
    assert verdicts([0.3, 0.6, 0.5, 0.5]) == [[], [], [], [NAME]]


def test_a_mean_reward_is_judged_like_a_pass_rate() -> None:
    assert verdicts([2.0, 1.0, 1.0], width=0.5, key="eval/reward_mean")[-1] == [NAME]


@pytest.mark.parametrize(
    "scores",
    [
        [0.5, 0.4, 0.5, 0.4, 0.5],  # never twice in a row
        [0.5, 0.47, 0.46, 0.46],  # within the interval
        [0.3, 0.4, 0.5, 0.6],
        [0.5, 0.4],  # two evaluations in all
    ],
)
def test_chance_is_not_reported(scores: list[float]) -> None:
    assert not any(verdicts(scores))


def test_one_low_evaluation_is_enough_while_the_training_reward_rises() -> None:
    rising: Callable[[int], float] = lambda step: 0.3 + 0.01 * step  # noqa: E731
    scores = [0.5, 0.6, 0.57, 0.5]
    assert verdicts(scores, reward=rising)[-1] == [NAME]
    assert verdicts(scores)[-1] == []


def test_a_verdict_that_was_gone_comes_again() -> None:
    assert verdicts([0.5, 0.4, 0.4, 0.5, 0.4, 0.4]) == [[], [], [NAME], [], [], [NAME]]


def test_an_evaluation_without_interval_is_no_evidence() -> None:
    health = Health(Config())
    for step in range(5):
        assert health.after_evaluation({"step": step, "eval/pass@1": 1.0 - step / 5}) == []


def test_the_verdict_stands_at_the_end_and_after_a_resume(tmp_path: Path) -> None:
    log = HealthLog(tmp_path, Health(Config()))
    log.begin(0)
    rows = [
        {"step": step, "eval/pass@1": score, "eval/ci95": 0.05}
        for step, score in ((0, 0.5), (10, 0.4), (20, 0.4))
    ]
    notes = [log.after_evaluation(int(row["step"]), row) for row in rows]
    assert [len(found) for found in notes] == [0, 0, 1]
    (line,) = log.standing()
    assert "0.5 (step 0)" in line
    assert "0.4 (step 20)" in line
    assert last_verdicts(tmp_path) == [line]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    again = HealthLog(tmp_path, Health(Config()))
    again.begin(20)
    assert again.standing() == [line]
    well = {"eval/pass@1": 0.5, "eval/ci95": 0.05}
    assert again.after_evaluation(30, well) == []
    assert again.standing() == []
    assert last_verdicts(tmp_path) == [line]  # `runs status` shows what there was
