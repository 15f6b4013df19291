"""Health verdicts: each by a series made for it, and silence where nothing is wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.monitor.health import CLEAR_STEPS, Health, HealthLog
from rlcli.monitor.health_checks import HealthVerdict
from rlcli.monitor.rollout_stats import common_error, length_correlation, zero_facts
from rlcli.monitor.trend import FIRST_KEPT, LAST_KEPT
from rlcli.types import Prompt, Reward, Rollout

CONFIG = with_values(
    Config(),
    {
        "rollout.n": 8,
        "train.prompts_per_step": 64,
        "train.mini_batch_prompts": 16,
        "algorithm.kl_in_reward": True,
    },
)
WELL = {
    "reward_mean": 0.5,
    "reward_std": 0.4,
    "entropy": 0.4,
    "kl_divergence": 0.01,
    "clip_fraction": 0.05,
    "response_length_mean": 100.0,
    "truncated_share": 0.05,
    "zero_variance_share": 0.3,
    "unscored": 0.0,
    "sampler/prob_gap": 0.001,
    "reward_length_correlation": -0.3,
    "skipped_updates": 0.0,
    "lr": 1e-6,
}
Value = float | Callable[[int], float]


def judged(
    steps: int, config: Config = CONFIG, **metrics: Value
) -> dict[str, tuple[int, HealthVerdict]]:
    """Name -> (step, verdict) of a run that is well but for these metrics."""
    found: dict[str, tuple[int, HealthVerdict]] = {}
    health = Health(config)
    for step in range(1, steps + 1):
        own = {k.replace("__", "/"): v(step) if callable(v) else v for k, v in metrics.items()}
        for verdict in health.after(step, {**WELL, **own}):
            assert verdict.name not in found
            found[verdict.name] = (step, verdict)
    return found


def only(found: dict[str, tuple[int, HealthVerdict]], name: str) -> tuple[int, str, str]:
    assert list(found) == [name]
    step, verdict = found[name]
    return step, verdict.says, verdict.cure


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_is_not_spoken_of(seed: int) -> None:
    noise = random.Random(seed)
    found = judged(
        400,
        reward_mean=lambda s: min(0.9, 0.3 + 0.005 * s) + noise.gauss(0, 0.03),
        entropy=lambda s: max(0.1, 0.45 - 0.004 * s) + noise.gauss(0, 0.01),
        kl_divergence=lambda s: min(0.05, 0.0005 * s),
        clip_fraction=lambda s: abs(noise.gauss(0.02, 0.01)),
        response_length_mean=lambda s: 100 + 0.5 * s + noise.gauss(0, 5),
        reward_length_correlation=lambda s: noise.gauss(-0.2, 0.15),
    )
    assert found == {}


def test_one_bad_step_is_chance() -> None:
    bad = {"truncated_share": 0.5, "kl_divergence": 0.3, "clip_fraction": 0.5}
    metrics: dict[str, Any] = {k: lambda s, k=k: bad[k] if s == 5 else WELL[k] for k in bad}
    assert judged(9, **metrics) == {}


@pytest.mark.parametrize(
    ("more", "cause", "cure"),
    [
        ({"truncated_share": 0.9}, "90% of the responses are cut", "data.max_response_tokens"),
        ({"rollouts/empty_share": 0.8}, "80% of the responses are empty", "prompts"),
        ({"rollouts/gold_share": 0.4}, "no answer is extracted", "reward.fn"),
        ({"rollouts/no_number_share": 0.7}, "no number to extract", "prompt"),
        ({"reward/format": 0.0}, "no response has the form", "reward.weights"),
        ({}, "the answers are wrong, or the reward does not read them", "rollouts view --zero"),
    ],
)
def test_reward_0_everywhere_names_its_cause(more: dict[str, float], cause: str, cure: str) -> None:
    health = Health(CONFIG)
    zero = {**WELL, "reward_mean": 0.0, "reward_std": 0.0, "zero_variance_share": 1.0, **more}
    assert health.after(1, zero) == []
    (verdict,) = health.after(2, zero)
    assert verdict.name == "reward_zero"
    assert cause in verdict.says
    assert cure in verdict.cure
    # groups without variance and cut responses are the same news
    assert [v for step in range(3, 9) for v in health.after(step, zero)] == []


@pytest.mark.parametrize(("steps", "cure"), [(0, "correction=token"), (1, "async_steps=0")])
def test_a_gap_between_sampler_and_trainer_is_put_down_to_a_step_between(
    steps: int, cure: str
) -> None:
    config = with_values(CONFIG, {"rollout.async_steps": steps})
    _, _, cure = only(judged(2, config, sampler__prob_gap=0.05), "sampler_gap")
    assert cure in cure


@pytest.mark.parametrize(("dtype", "is_found"), [("float32", True), ("bfloat16", False)])
def test_rounding_of_bfloat16_is_no_sampler_gap(dtype: str, is_found: bool) -> None:
    config = with_values(CONFIG, {"model.dtype": dtype})
    found = judged(2, config, sampler__prob_gap=0.016)
    assert list(found) == (["sampler_gap"] if is_found else [])


def test_a_reward_that_is_lost_is_another_matter() -> None:
    found = judged(
        6,
        reward_mean=lambda s: 0.3 if s < 3 else 0.0,
        reward_std=lambda s: 0.4 if s < 3 else 0.0,
    )
    step, says, cure = only(found, "reward_zero")
    assert step == 4
    assert "it was 0.3" in says
    assert "train.lr" in cure


@pytest.mark.parametrize(
    ("name", "metrics", "step", "words"),
    [
        ("truncation", {"truncated_share": 0.25}, 2, "25% of the responses are cut"),
        ("zero_variance", {"zero_variance_share": 0.9}, 3, "90% of the groups"),
        ("kl_high", {"kl_divergence": 0.2}, 2, "kl_divergence 0.2 is above 0.1"),
        ("kl_low", {"kl_divergence": 1e-4}, 50, "is below 0.001 after 50 steps"),
        ("clip_high", {"clip_fraction": 0.4}, 2, "clip_fraction 0.4 is above 0.3"),
        ("clip_none", {"clip_fraction": 0.0}, 20, "is 0 for 20 steps of 4 updates"),
        ("sampler_gap", {"sampler__prob_gap": 0.05}, 2, "differ by 0.05"),
        ("reward_length", {"reward_length_correlation": 0.9}, 3, "r = 0.90"),
        ("unscored", {"unscored": 51.2}, 2, "leaves 10% of the rollouts unscored"),
        ("skipped_updates", {"skipped_updates": 1.0}, 1, "1 updates were skipped"),
    ],
)
def test_a_level_out_of_range_is_said_with_its_number(
    name: str, metrics: dict[str, Value], step: int, words: str
) -> None:
    at, says, cure = only(judged(60, **metrics), name)
    assert at == step
    assert words in says
    assert "." in cure


def test_knobs_fit_the_settings() -> None:
    easy = judged(5, zero_variance_share=0.9, reward_mean=0.9)["zero_variance"][1]
    hard = judged(5, zero_variance_share=0.9, reward_mean=0.1)["zero_variance"][1]
    assert "Harder prompts" in easy.cure
    assert "rollout.n (now 8)" in hard.cure
    judge = with_values(CONFIG, {"reward.judge.enabled": True})
    assert "reward.judge.concurrency" in judged(3, judge, unscored=80.0)["unscored"][1].cure
    loss = with_values(CONFIG, {"algorithm.kl_loss": True})
    assert "algorithm.kl_loss_coef" in judged(3, loss, kl_divergence=0.2)["kl_high"][1].cure
    assert "algorithm.kl_coef" in judged(3, kl_divergence=0.2)["kl_high"][1].cure


def test_an_entropy_that_falls_fast_or_to_nothing_is_a_collapse() -> None:
    fast = judged(30, entropy=lambda s: 0.4 if s < 15 else 0.1)
    step, says, _ = only(fast, "entropy_collapse")
    assert step == 17  # the mean of three steps
    assert "from 0.4 to 0.1" in says
    slow = judged(200, entropy=lambda s: 0.4 * 0.97**s)
    assert "of its start" in only(slow, "entropy_collapse")[1]
    assert judged(200, entropy=lambda s: 0.4 * 0.97**s, reward_mean=0.97) == {}


def test_length_that_doubles_for_nothing_is_a_runaway() -> None:
    def grows(step: int) -> float:
        return 100 * 1.05**step

    assert (
        "reward did not rise" in only(judged(30, response_length_mean=grows), "length_runaway")[1]
    )
    rising = judged(30, response_length_mean=grows, reward_mean=lambda s: 0.2 + 0.02 * s)
    assert rising == {}


def test_a_reward_that_falls_is_told_from_noise() -> None:
    def falls(step: int) -> float:
        return 0.7 - 0.02 * max(0, step - 20) + 0.02 * (-1) ** step

    step, says, cure = only(judged(35, reward_mean=falls), "reward_falling")
    assert 20 < step < 32
    assert "reward fell from 0.7" in says
    assert "train.mini_batch_prompts" in cure


def test_a_slow_start_is_no_stand_still() -> None:
    def warm_up(step: int) -> float:
        return 1e-6 * min(1.0, step / 100)

    assert judged(45, kl_divergence=1e-5, clip_fraction=0.0, lr=warm_up) == {}
    rising: dict[str, Value] = {"reward_mean": lambda s: 0.2 + 0.005 * s}
    assert judged(90, kl_divergence=1e-5, clip_fraction=0.0, **rising) == {}


def test_a_verdict_is_said_again_only_after_it_was_gone() -> None:
    def told(bad: Sequence[int]) -> list[int]:
        health = Health(CONFIG)
        return [
            step
            for step in range(1, 40)
            for _ in health.after(step, {**WELL, "truncated_share": 0.5 if step in bad else 0.0})
        ]

    assert told(range(3, 9)) == [4]
    assert told([3, 4, 7, 8, 11, 12]) == [4]
    assert told([3, 4, 4 + CLEAR_STEPS + 1, 4 + CLEAR_STEPS + 2]) == [4, 16]


def test_numbers_that_are_none_are_absent() -> None:
    nan, huge = float("nan"), 1e300
    health = Health(CONFIG)
    for step in range(1, 80):
        odd: dict[str, float | None] = dict.fromkeys(WELL, nan) | {"reward_mean": None}
        assert health.after(step, odd) == []
    for step in range(80, 160):
        health.after(step, dict.fromkeys(WELL, huge * (-1) ** step))
    assert len(health._steps) == FIRST_KEPT + LAST_KEPT


# -- what rollouts say --------------------------------------------------------------------------


def rollout(text: str, gold: str = "42") -> Rollout:
    prompt = Prompt(id="a:1", messages=({"role": "user", "content": "?"},), token_ids=(1,),
                    ground_truth=gold)  # fmt: skip
    ids = tuple(range(len(text)))
    return Rollout(prompt=prompt, text=text, token_ids=ids, logprobs=(0.0,) * len(ids),
                   finish_reason="stop", policy_version=0)  # fmt: skip


def test_reward_against_length_is_pearsons_r() -> None:
    rollouts = [rollout("x" * n) for n in range(1, 21)]
    rising = [Reward(value=0.1 * n) for n in range(1, 21)]
    (r,) = length_correlation(rollouts, rising).values()
    assert r == pytest.approx(1.0)
    assert length_correlation(rollouts, [Reward(value=1.0)] * 20) == {}
    assert length_correlation(rollouts[:9], rising[:9]) == {}
    tiny = [Reward(value=1e-200 * n) for n in range(20)]
    assert length_correlation(rollouts, tiny) == {}


def test_zero_facts_tell_missing_answers_from_unread_ones() -> None:
    rollouts = [rollout("it is 42"), rollout(" "), rollout("none"), rollout("7")]
    zeros = [Reward(value=0.0)] * 4
    assert zero_facts(rollouts, zeros) == {
        "rollouts/empty_share": 0.25,
        "rollouts/gold_share": 0.25,
        "rollouts/no_number_share": 0.5,
    }
    assert zero_facts(rollouts, [Reward(value=1.0), *zeros[1:]]) == {}


def test_the_commonest_error_is_the_cause_of_unscored_rollouts() -> None:
    errors = ["judge: timed out\nmore", "judge: timed out", "\x1b[31m"]
    rewards = [Reward(value=None, error=e) for e in errors] + [Reward(value=1.0)]
    assert common_error(rewards) == "judge: timed out"
    health = Health(CONFIG)
    health.after(1, {**WELL, "unscored": 100.0})
    (verdict,) = health.after(2, {**WELL, "unscored": 100.0}, error="judge: timed out")
    assert verdict.says.endswith("Most often: judge: timed out.")


# -- health.jsonl -------------------------------------------------------------------------------


def test_the_file_holds_every_verdict_and_a_resumed_run_goes_on_with_it(tmp_path: Path) -> None:
    bad = {**WELL, "truncated_share": 0.5}
    log = HealthLog(tmp_path, Health(CONFIG))
    log.begin(0)
    notes = [note for step in range(1, 6) for note in log.after(step, bad)]
    assert len(notes) == 1
    assert notes[0].startswith("health: 50% of the responses are cut")
    rows = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["knob", "says", "step", "verdict"]]
    assert rows[0]["step"] == 2
    metrics = [{"step": step, "epoch": 1, **bad} for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))
    again = HealthLog(tmp_path, Health(CONFIG))
    again.begin(5)
    assert again.after(6, bad) == []
    earlier = HealthLog(tmp_path, Health(CONFIG))
    earlier.begin(1)
    assert (tmp_path / "health.jsonl").read_text() == ""
    assert len(earlier.after(2, bad)) == 1


def test_a_file_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    log = HealthLog(tmp_path / "gone", Health(CONFIG))
    log.begin(0)
    log.after(1, {**WELL, "truncated_share": 0.5})
    assert len(log.after(2, {**WELL, "truncated_share": 0.5})) == 1
