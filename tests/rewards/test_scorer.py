"""From the reward section of a configuration to a scorer."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlcli.config.rewards import JudgeConfig, RewardConfig
from rlcli.data.readers import Row
from rlcli.errors import RewardError
from rlcli.rewards import build_scorer, check_reward, reference_problems
from rlcli.rewards.base import score_all
from rlcli.rewards.batched_scorer import BatchScorer
from rlcli.types import Reward, Rollout


def test_rules_score_what_the_data_source_says(rollout: Any) -> None:
    config = RewardConfig(fn="rules", workers=2)
    check_reward(config, {"openai/gsm8k", "sums"})
    scorer = build_scorer(config)
    try:
        rewards = score_all(scorer, [rollout("#### 7", "7", "gsm8k"), rollout("8", "7", "sums")])
    finally:
        scorer.close()
    assert [reward.value for reward in rewards] == [1.0, 0.0]
    assert not scorer.can_recover(Reward(value=None))


def test_a_named_rule_scores_rows_of_any_data_source(rollout: Any) -> None:
    config = RewardConfig(fn="exact")
    check_reward(config, {"", "mine"})
    scorer = build_scorer(config)
    try:
        assert score_all(scorer, [rollout("a", "a", "mine")])[0].value == 1.0
    finally:
        scorer.close()


def test_a_data_source_without_a_rule_is_refused() -> None:
    with pytest.raises(RewardError, match="no built-in rule grades data_source 'mine'"):
        check_reward(RewardConfig(fn="rules"), {"gsm8k", "mine"})


def test_weights_for_a_rule_are_refused_and_for_a_function_used(
    user_file: Any, rollout: Any
) -> None:
    with pytest.raises(RewardError, match="returns one number without parts"):
        check_reward(RewardConfig(fn="gsm8k", weights={"form": 1.0}), {"gsm8k"})
    fn = user_file("def compute_score(**row): return {'right': 1.0, 'form': 0.5}")
    config = RewardConfig(fn=fn, weights={"right": 1.0, "form": 2.0})
    check_reward(config, {"anything"})
    scorer = build_scorer(config)
    try:
        assert score_all(scorer, [rollout("x")])[0].value == 2.0
    finally:
        scorer.close()


def test_a_function_that_does_not_load_is_refused(user_file: Any) -> None:
    with pytest.raises(RewardError, match=r"reward\.py:1: SyntaxError"):
        check_reward(RewardConfig(fn=user_file("def (")), {"x"})


def test_golds_that_no_rule_can_grade_are_found() -> None:
    rows = [
        row_of("72", source="gsm8k", line=1),
        row_of("seventy", source="gsm8k", line=2),
        row_of(None, source="math", line=3),
    ]
    assert reference_problems(RewardConfig(fn="rules"), rows) == [
        "a.jsonl:2: ground_truth 'seventy' is not a number (rule gsm8k).",
        "a.jsonl:3: there is no ground_truth (rule math).",
    ]
    assert reference_problems(RewardConfig(fn="mine.py:f"), rows) == []


def test_runs_without_rules_need_none_for_their_data_source() -> None:
    rows = [row_of("seventy", source="gsm8k", line=1), row_of(None, source="mine", line=2)]
    alone = RewardConfig(model="http://host/score")
    assert check_reward(alone, {"mine"}) == []
    assert reference_problems(alone, rows) == []
    weights = {"rm_score": 0.7, "rule_score": 0.3}
    mixed = alone.model_copy(update={"composite": True, "weights": weights})
    with pytest.raises(RewardError, match="no built-in rule grades data_source 'mine'"):
        check_reward(mixed, {"mine"})
    assert reference_problems(mixed, rows[:1]) == [
        "a.jsonl:1: ground_truth 'seventy' is not a number (rule gsm8k)."
    ]
    (note,) = check_reward(mixed, {"gsm8k"})
    assert "in standard deviations from the mean of its scores so far" in note
    assert "reward.normalize=auto" in note
    (note,) = check_reward(mixed.model_copy(update={"normalize": "off"}), {"gsm8k"})
    assert "on no fixed scale" in note
    fixed = {"normalize": "fixed", "normalize_mean": 2.0, "normalize_std": 0.5}
    (note,) = check_reward(mixed.model_copy(update=fixed), {"gsm8k"})
    assert "counts as (score - 2) / 0.5" in note


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({}, [3.0, 5.0]),
        ({"normalize": "running"}, [-1.0, 1.0]),
        ({"normalize": "fixed", "normalize_mean": 1.0, "normalize_std": 2.0}, [1.0, 2.0]),
    ],
)
def test_a_lone_reward_model_is_raw_unless_a_scale_is_asked_for(
    settings: dict[str, Any], values: list[float], rollout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rater:
        is_service, max_batch = False, 2

        def rate(self, rollouts: Sequence[Rollout]) -> list[Reward]:
            return [Reward(value=float(one.text)) for one in rollouts]

        def close(self) -> None:
            pass

    monkeypatch.setattr("rlcli.rewards.build._model_scorer", lambda *_: BatchScorer(Rater()))
    scorer = build_scorer(RewardConfig(model="m", **settings))
    try:
        raw = score_all(scorer, [rollout("3"), rollout("5")])
    finally:
        scorer.close()
    settled = scorer.normalize(raw, update_stats=True)
    assert [reward.value for reward in raw] == [3.0, 5.0]
    assert [reward.value for reward in settled] == values
    assert [dict(reward.parts) for reward in settled] == [
        {"rm_score": value} if settings else {} for value in (3.0, 5.0)
    ]


def test_rule_first_needs_no_rule_for_every_row(user_file: Any) -> None:
    pytest.importorskip("openai", reason="pip install -e '.[judge]'")
    judge = JudgeConfig(enabled=True, rule_first=True, base_url="http://127.0.0.1:9")
    config, env = RewardConfig(judge=judge), {"DASHSCOPE_API_KEY": "canary"}
    note = check_reward(config, {"gsm8k", "essays", ""}, env=env)[0]
    assert note == "no built-in rule grades data_source '', 'essays': the judge scores."
    rows = [row_of(None, source="essays", line=1), row_of("seventy", source="gsm8k", line=2)]
    assert reference_problems(config, rows) == [
        "a.jsonl:2: ground_truth 'seventy' is not a number (rule gsm8k)."
    ]
    silent = user_file("def compute_score(**row): return None")
    check_reward(RewardConfig(judge=judge, fn=silent), {"x"}, env=env, rows=[row_of("4")])
    with pytest.raises(RewardError, match="returned NoneType None"):
        check_reward(RewardConfig(fn=silent), {"x"}, rows=[row_of("4")])


def test_under_rule_first_a_rule_and_the_judge_are_built(rollout: Any) -> None:
    pytest.importorskip("openai", reason="pip install -e '.[judge]'")
    judge = JudgeConfig(enabled=True, rule_first=True, base_url="http://127.0.0.1:9")
    config = RewardConfig(judge=judge, fn="gsm8k")
    scorer = build_scorer(config, env={"DASHSCOPE_API_KEY": "canary"})
    try:
        # a judge gives nothing for an empty response, without a call
        rewards = score_all(scorer, [rollout("#### 7", "7"), rollout("", "7")])
    finally:
        scorer.close()
    assert [dict(reward.parts) for reward in rewards] == [{"rule_score": 1.0}, {"judge": 0.0}]
    assert scorer.metrics()["judge/asked_share"] == 0.5


def test_what_the_user_set_beside_a_reward_model_is_not_left_out_in_silence() -> None:
    config = RewardConfig(model="http://host/score", fn="gsm8k")
    assert check_reward(config, {"gsm8k"}) == []
    with pytest.raises(RewardError, match="are both to score"):
        check_reward(config, {"gsm8k"}, explicit=frozenset({"reward.fn"}))


def test_a_composite_of_a_rule_alone_weighs_it_and_keeps_the_raw_part(rollout: Any) -> None:
    config = RewardConfig(fn="exact", composite=True, weights={"rule_score": 3.0})
    check_reward(config, {"any"}, explicit=frozenset({"reward.fn", "reward.weights"}))
    scorer = build_scorer(config)
    try:
        right, wrong = score_all(scorer, [rollout("1", "1"), rollout("2", "1")])
    finally:
        scorer.close()
    assert (right.value, dict(right.parts)) == (3.0, {"rule_score": 1.0})
    assert (wrong.value, dict(wrong.parts)) == (0.0, {"rule_score": 0.0})


def test_a_judge_and_a_function_are_mixed_by_weights(user_file: Any, rollout: Any) -> None:
    pytest.importorskip("openai", reason="pip install -e '.[judge]'")
    config = RewardConfig(
        judge=JudgeConfig(enabled=True, base_url="http://127.0.0.1:9"),
        fn=user_file("def compute_score(**row): return 1.0"),
        composite=True,
        weights={"rm_score": 0.75, "rule_score": 0.25},
    )
    with pytest.raises(RewardError, match="DASHSCOPE_API_KEY"):
        check_reward(config, {"mine"}, env={})
    key = {"DASHSCOPE_API_KEY": "canary"}
    assert check_reward(config, {"mine"}, env=key)
    scorer = build_scorer(config, env=key)
    try:
        assert scorer.can_recover(Reward(value=None, parts={"rule_score": 1.0}))
        assert not scorer.can_recover(Reward(value=None, parts={"rm_score": 1.0}))
        (reward,) = score_all(scorer, [rollout("")])  # a judge gives nothing for it, without a call
    finally:
        scorer.close()
    assert (reward.value, dict(reward.parts)) == (0.25, {"rm_score": 0.0, "rule_score": 1.0})


def test_parts_that_run_are_closed_when_a_later_one_cannot_be_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no process")

    monkeypatch.setattr("rlcli.rewards.build.ScorerPool", broken)
    config = RewardConfig(
        model="http://127.0.0.1:9/score",
        composite=True,
        weights={"rm_score": 0.75, "rule_score": 0.25},
    )
    with pytest.raises(OSError, match="no process"):
        build_scorer(config)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rate-")]


def test_importing_rewards_and_data_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "pyarrow", "sympy", "math_verify", "huggingface_hub"}
    code = (
        "import sys, rlcli.rewards, rlcli.rewards.worker, rlcli.data.readers, "
        "rlcli.data.prompts, rlcli.data.convert\n"
        f"print(*(set(sys.modules) & {heavy}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def row_of(ground_truth: Any, *, source: str = "sums", line: int = 1, **columns: Any) -> Row:
    return Row(
        id=f"a.jsonl:{line}",
        prompt="2 + 2?",
        ground_truth=ground_truth,
        data_source=source,
        columns=columns,
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 1.0 if solution_str == ground_truth else 0.0", None),
        ("return 0.5", "gives 0.5 to a row's own ground truth and 0.5 to another row's"),
    ],
)
def test_a_function_is_tried_on_a_right_and_a_wrong_answer(
    body: str, says: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def compute_score(data_source, solution_str, ground_truth):\n    {body}\n")
    config = RewardConfig(fn=f"{file}:compute_score")
    notes = check_reward(config, {"sums"}, rows=[row_of("4"), row_of("5")])
    assert len(notes) == (1 if says else 0)
    assert all(says in note for note in notes if says)


def test_a_function_that_fails_on_the_ground_truth_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return extract_final_answer(solution_str)\n"
    )
    with pytest.raises(RewardError, match=r"NameError.*extract_final_answer.*mine\.py:2"):
        check_reward(RewardConfig(fn=f"{file}:compute_score"), {"x"}, rows=[row_of("4")])
