"""Runs scored by a local reward model, alone and mixed with the rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reward_models import save_starling
from small_runs import metrics, quickstart

from rlcli.cli.main import main


def train(*words: str, val: str = "data.val=[]") -> int:
    return quickstart("--output_dir", "run", "rollout.n=2", "--max_steps", "2", val, *words)


def test_a_reward_model_scores(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REWARD_MODEL_PATH", str(classifier))
    assert train() == 0
    means = [step["reward_mean"] for step in metrics()]
    assert len(means) == 2
    assert all(mean not in (0.0, 1.0) for mean in means)


def test_the_guides_mix_is_the_weighted_sum_of_its_parts(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward_model_config.yaml").write_text(
        "composite_reward:\n  enable: true\n  weights:\n    rm_score: 0.7\n    rule_score: 0.3\n"
    )
    assert train("--reward_model", str(classifier), "reward.normalize=off") == 0
    for step in metrics():
        mixed = 0.7 * step["reward/rm_score"] + 0.3 * step["reward/rule_score"]
        assert step["reward_mean"] == pytest.approx(mixed, abs=1e-6)


def test_starling_scores_from_its_pickle_and_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_starling(tmp_path / "starling")
    assert train("--reward_model", str(folder)) == 0
    said = capsys.readouterr()
    assert "are pickled (*.bin)" in " ".join(said.out.split())
    assert "UNEXPECTED" not in said.out + said.err
    means = [step["reward_mean"] for step in metrics()]
    assert len(means) == 2
    assert all(mean not in (0.0, 1.0) for mean in means)


def test_a_causal_model_is_no_reward_model(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("--reward_model", str(tiny_model)) == 2
    err = capsys.readouterr().err
    assert "reward" in err
    assert len(err.strip().splitlines()) <= 3
    assert not (tmp_path / "run").exists()


@pytest.fixture
def held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "1+1=", "ground_truth": "2", "data_source": "sums"}
    (tmp_path / "val.jsonl").write_text(json.dumps(row))
    return "data.val=val.jsonl"


def test_a_reward_models_score_is_no_pass_rate(
    classifier: Path, held_out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--reward_model", str(classifier), val=held_out) == 0
    said = capsys.readouterr().out
    assert "Held-out reward: " in said
    assert " before, " in said
    assert "pass@1" not in said
    assert "Validation Accuracy" not in said
    evaluated = [row for row in metrics() if "eval/reward_mean" in row]
    assert [row["step"] for row in evaluated] == [0, 2]
    assert not [name for row in evaluated for name in row if "pass@1" in name]
    for command in (["report", "run"], ["runs", "list"], ["ckpt", "list", "run"], ["eval", "run"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert not ended.value.code, command
    assert "no pass mark" in capsys.readouterr().out


def test_the_rules_part_of_a_mix_is_its_pass_rate(
    classifier: Path, held_out: str, tmp_path: Path
) -> None:
    (tmp_path / "right.py").write_text("def compute_score(**row): return 1.0\n")
    mix = ["reward.composite=true", "reward.weights={rm_score: 0.0, rule_score: 0.3}"]
    arguments = ["--reward_model", str(classifier), "--reward", "right.py", *mix]
    assert train(*arguments, val=held_out) == 0
    first = metrics()[0]
    assert first["eval/reward_mean"] == pytest.approx(0.3)
    assert first["eval/pass@1"] == 1.0
