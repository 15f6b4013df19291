"""Every main_ppo command of the guides trains for real when it is scaled down."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from rlcli.cli.main import main
from rlcli.compat.verl.script import read_script

COMMANDS = Path(__file__).resolve().parent.parent / "config" / "guide_commands.txt"
LINES = [
    command.line
    for command in read_script(COMMANDS.read_text("utf-8"), {"HOME": "/home"}, name="guides")
]
ROWS = [
    {"prompt": f"What is {i} + 1?", "ground_truth": str(i + 1), "data_source": "exact"}
    for i in range(20)
]


def test_there_are_eighteen_commands() -> None:
    assert len(LINES) == 18


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_guides_trains(
    line: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS))
    small = [
        "--model",
        str(tiny_model),
        "--max_steps",
        "2",
        "data.train_batch_size=8",
        "--n_gpus=1",
        "trainer.nnodes=1",
    ]
    small += ["--data", str(rows), "data.val_files=[]", "critic.model.path=null"]
    small += ["data.max_prompt_length=64", "data.max_response_length=6", "--output_dir", "run"]
    before = dict(os.environ)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["train", "--from-script", f"{COMMANDS}:{line}", *small])
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert ended.value.code == 0
    records = [
        json.loads(text)
        for text in (tmp_path / "run/metrics.jsonl").read_text().split("\n")
        if text
    ]
    assert [record["step"] for record in records] == [1, 2]
    assert all(abs(record["policy_loss"]) < 1e3 for record in records)
    assert (tmp_path / "run/checkpoints/final/model.safetensors").is_file()
    assert not re.search("Traceback", (tmp_path / "run/console.log").read_text())
