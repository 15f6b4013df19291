"""`rlcli data` and `rlcli presets`: what they print and how they end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rlcli.cli.main import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rlcli", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_check_lists_every_bad_row_and_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "a", "ground_truth": "1", "data_source": "gsm8k"}
    file = write(
        tmp_path / "d.jsonl",
        good,
        {**good, "prompt": ""},
        {**good, "ground_truth": "many"},
        {**good, "ground_truth": None},
    )
    assert run(monkeypatch, "data", "check", file, "--json") == 2
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 2
    assert sorted(error.split(":")[1] for error in said["errors"]) == ["2", "3", "4"]


def test_check_of_a_good_file_exits_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "a", "ground_truth": "1", "data_source": "mine"}
    assert run(monkeypatch, "data", "check", write(tmp_path / "d.jsonl", row)) == 0
    assert "1 rows; data_source: mine" in capsys.readouterr().out


def test_show_prints_rows_as_they_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "data", "show", "builtin:sums", "-n", "1") == 0
    row = json.loads(capsys.readouterr().out)
    left, right = row["prompt"].removesuffix("=").split("+")
    assert row["ground_truth"] == str(int(left) + int(right))


def test_presets_list_names_all_with_their_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "presets", "list", "--json") == 0
    kinds = {row["name"]: row["kind"] for row in json.loads(capsys.readouterr().out)}
    assert kinds["grpo"] == "algorithm"
    assert kinds["quickstart"] == "recipe"
    assert run(monkeypatch, "presets", "show", "dapo") == 0
    assert "dynamic_sampling: true" in capsys.readouterr().out


def test_an_unknown_preset_gets_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "presets", "show", "gpro") == 2
    assert "grpo" in capsys.readouterr().err
