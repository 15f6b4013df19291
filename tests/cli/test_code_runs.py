"""Runs whose reward executes code: with a sandbox, refused without one, unboxed when asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from saved_models import save_tiny_model

from rlcli.cli.main import main
from rlcli.rewards.sandbox import NoSandbox, find_sandbox

ROWS = [
    {
        "prompt": f"Write a function that adds {n}.",
        "ground_truth": [f"assert add(1) == {1 + n}"],
        "data_source": "mbpp",
    }
    for n in range(4)
]
SMALL = ["--algo", "grpo", "--batch_size", "4", "--max_steps", "2", "rollout.n=2", "data.val=[]",
         "data.max_prompt_tokens=1400", "data.max_response_tokens=8", "--output_dir", "run",
         "train.mini_batch_prompts=4", "train.device=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "long"
    return save_tiny_model(folder, "Qwen2", max_position_embeddings=1500)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def need_sandbox() -> None:
    try:
        find_sandbox()
    except NoSandbox as refusal:
        pytest.skip(f"needs a sandbox (apt-get install bubblewrap): {refusal.problem}")


def test_without_a_sandbox_a_start_is_refused_with_the_cure(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    words = ["train", "--model", str(model), "--data", "rows.jsonl", *SMALL]
    for more in ([], ["--dry_run"], ["--reward", "code"]):
        assert command(*words, *more) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "there is no sandbox: bubblewrap (bwrap) is not on PATH" in said
        assert "apt-get install bubblewrap" in said
        assert "--unsafe_code_execution" in said
    assert not (folder / "run").exists()


def test_unboxed_it_trains_and_says_so(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    words = ["train", "--model", str(model), "--data", "rows.jsonl", *SMALL]
    assert command(*words, "--unsafe_code_execution") == 0
    assert "UNSAFE: no sandbox works here" in " ".join(capsys.readouterr().out.split())
    assert scored(folder) == [0, 0]


def test_the_switch_is_not_used_where_a_sandbox_works_or_no_code_runs(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = [{**row, "ground_truth": "1", "data_source": "sums"} for row in ROWS]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    words = ["train", "--model", str(model), *SMALL, "--dry_run", "--unsafe_code_execution"]
    assert command(*words, "--data", "sums.jsonl") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not used: reward.unsafe_code_execution (no rule here runs code)" in said
    need_sandbox()
    assert command(*words, "--data", "rows.jsonl") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not used: reward.unsafe_code_execution (the sandbox works here)" in said


def test_humaneval_trains_two_steps_with_no_rollout_unscored(
    folder: Path, model: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_sandbox()
    prepared = ["data", "prepare", "humaneval", "--source", str(shared_data), "--local_dir", "data"]
    assert command(*prepared) == 0
    assert command("data", "check", "data/test.parquet") == 0
    words = ["train", "--model", str(model), "--data", "data/test.parquet", *SMALL]
    assert command(*words, "--dry_run") == 0
    assert command(*words) == 0, capsys.readouterr().err
    assert scored(folder) == [0, 0]


def test_data_check_names_rows_without_tests(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad: list[dict[str, Any]] = [*ROWS, {**ROWS[0], "ground_truth": ["add(1) = 2"]}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, bad)))
    assert command("data", "check", "rows.jsonl") == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "rows.jsonl:5: the tests in ground_truth are no Python that compiles (rule code)" in said


def scored(folder: Path) -> list[int]:
    """How many rollouts of each step are unscored."""
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["unscored"] for line in lines if "unscored" in line]
