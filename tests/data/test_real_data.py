"""GSM8K from its file to a trained model: prepare, read, sample, grade, update, save."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rlcli.cli.main import main

TINY = [
    "--max_steps", "2", "train.prompts_per_step=4", "train.mini_batch_prompts=4", "rollout.n=2",
    "data.max_prompt_tokens=200", "data.max_response_tokens=12", "data.filter_overlong=true",
]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rlcli", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_llama"])
def test_training_on_gsm8k_runs_with_its_rule(
    shared_data: Path,
    tmp_path: Path,
    kind: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model: Path = request.getfixturevalue(kind)
    monkeypatch.chdir(tmp_path)
    with (shared_data / "gsm8k_train.jsonl").open() as file:
        (tmp_path / "gsm8k_train.jsonl").write_text("".join(next(file) for _ in range(300)))
    prepared = run(
        monkeypatch, "data", "prepare", "gsm8k", "--source", "gsm8k_train.jsonl",
        "--local_dir", "data",
    )  # fmt: skip
    assert prepared == 0
    assert "train: 300 rows" in capsys.readouterr().out
    code = run(
        monkeypatch, "train", "--algo", "grpo", "--model", str(model), "--data",
        "data/train.parquet", "--output_dir", "run", "data.val=[]", *TINY,
    )  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "prompts dropped" in said.out
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["unscored"] for line in lines if "unscored" in line] == [0, 0]
    assert (tmp_path / "run" / "checkpoints" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize(("name", "rows"), [("math", (4000, 500)), ("humaneval", (164,))])
def test_math_and_humaneval_convert(
    shared_data: Path,
    tmp_path: Path,
    name: str,
    rows: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run(
        monkeypatch, "data", "prepare", name, "--source", str(shared_data), "--local_dir",
        str(tmp_path), "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert tuple(file["rows"] for file in report["files"].values()) == rows
