"""metrics.jsonl is read the same way by everyone, whatever state it is in."""

from __future__ import annotations

import json
from pathlib import Path

from rlcli.run_dir.folder import RunDir
from rlcli.run_dir.metrics_file import is_number, newest_metrics, read_metrics

LINES = [
    {"step": 0, "eval/pass@1": 0.1},
    {"step": 1, "epoch": 1, "reward_mean": 0.2, "kl": 0.5},
    {"step": 2, "epoch": 1, "reward_mean": 0.9, "kl": None},
    {"step": 2, "epoch": 1, "reward_mean": 0.3},
    {"step": 2, "eval/pass@1": 0.4},
]


def write(path: Path) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    path.write_text(f'{text}[1]\n{{"step": null}}\n{{"step": 3, "rew', encoding="utf-8")
    return path


def test_the_later_line_of_a_step_counts_for_all_readers(tmp_path: Path) -> None:
    file = write(tmp_path / "metrics.jsonl")
    steps, evaluations = read_metrics(file)
    assert [row["reward_mean"] for row in steps] == [0.2, 0.3]
    assert [row["eval/pass@1"] for row in evaluations] == [0.1, 0.4]
    newest = {"step": 2, "epoch": 1, "reward_mean": 0.3, "kl": 0.5, "eval/pass@1": 0.4}
    assert newest_metrics(file, last_bytes=10_000) == newest
    assert RunDir(tmp_path).last_metrics() == newest


def test_a_line_that_the_tail_cuts_is_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "metrics.jsonl")
    last = file.stat().st_size - file.read_text().index("0.9")
    assert newest_metrics(file, last_bytes=last)["reward_mean"] == 0.3
    assert "kl" not in newest_metrics(file, last_bytes=last)
    assert newest_metrics(tmp_path / "none", last_bytes=10) == {}


def test_what_no_float_holds_is_no_number() -> None:
    assert [is_number(value) for value in (1, -0.5, 10**308)] == [True] * 3
    odd = (True, None, "1", float("nan"), float("inf"), 10**400)
    assert [is_number(value) for value in odd] == [False] * 6
