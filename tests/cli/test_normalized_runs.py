"""Runs that mix a reward model's scores with the rules', on a scale that goes along."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from small_runs import metrics, quickstart

from rlcli.cli.main import main

MIX = ["reward.composite=true", "reward.weights={rm_score: 0.7, rule_score: 0.3}"]


def train(classifier: Path, run: str, steps: int, *words: str) -> int:
    given = ["--output_dir", run, "--reward_model", str(classifier), *MIX]
    return quickstart(*given, "rollout.n=4", "--max_steps", str(steps), *words)


def raw_scores(run: Path, step: int) -> list[float]:
    lines = (run / f"rollouts/step_{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line)["parts"]["rm_score"] for line in lines]


def kept_scale(run: Path, step: int) -> dict[str, Any]:
    state = json.loads((run / f"checkpoints/step_{step}/state.json").read_text())
    return state["scorer"]["scale"]


def test_the_guides_mix_counts_the_reward_model_in_its_own_deviations(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(classifier, "run", 3) == 0
    run = tmp_path / "run"
    seen: list[float] = []
    for row in metrics(run):
        scores = raw_scores(run, int(row["step"]))
        seen += scores
        mean = (statistics.fmean(scores) - statistics.fmean(seen)) / statistics.pstdev(seen)
        expected = 0.7 * mean + 0.3 * row["reward/rule_score"]
        assert row["reward_mean"] == pytest.approx(expected, abs=1e-9)
        assert row["reward/rm_score"] == pytest.approx(statistics.fmean(scores))
    assert metrics(run)[0]["reward_std"] > 0.3
    count, mean, squares = kept_scale(run, 3)["training"]
    assert (count, mean) == (len(seen), pytest.approx(statistics.fmean(seen)))
    assert math.sqrt(squares / count) == pytest.approx(statistics.pstdev(seen))


def test_a_run_that_breaks_and_goes_on_has_the_scale_of_one_that_never_did(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(classifier, "whole", 4, "run.save_every=1") == 0
    with monkeypatch.context() as patch:
        from rlcli.trainer import loop

        collate, times = loop.collate, iter(range(9))

        def breaks(*arguments: Any, **more: Any) -> Any:
            if next(times) == 2:
                raise ZeroDivisionError
            return collate(*arguments, **more)

        patch.setattr(loop, "collate", breaks)
        with pytest.raises(ZeroDivisionError):
            main(
                ["train", "--preset", "quickstart", "--output_dir", "broken", "--reward_model",
                 str(classifier), *MIX, "data.val=[]", "--batch_size", "4", "rollout.n=4",
                 "--max_steps", "4", "run.save_every=1"]
            )  # fmt: skip
    assert train(classifier, "broken", 4, "run.save_every=1", "--resume", "auto") == 0
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert kept_scale(broken, 4) == kept_scale(whole, 4)
    assert [row["reward_mean"] for row in metrics(broken)] == [
        row["reward_mean"] for row in metrics(whole)
    ]


def test_eval_gives_the_runs_own_held_out_reward(
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"{i}+1=", "ground_truth": str(i + 1), "data_source": "sums"} for i in (1, 5)
    ]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert (
        train(
            classifier,
            "run",
            2,
            "data.val=val.jsonl",
            "rollout.val_n=1",
            "rollout.val_temperature=0",
            "train.lr=1e-2",
        )
        == 0
    )
    first, last = [row for row in metrics(tmp_path / "run") if "eval/reward_mean" in row]
    # on its own scale the reward model's part is 0 in the mean; the rules give pass@1
    assert first["eval/reward_mean"] == pytest.approx(0.3 * first["eval/pass@1"], abs=1e-9)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["eval", "run", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["reward_mean"] == pytest.approx(last["eval/reward_mean"], abs=1e-6)
