"""Reports: everything a run's files say, safe to open, whatever state the files are in."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rlcli.config.schema import Config
from rlcli.report import read_run, read_runs, text_lines, to_json, write_page, write_report
from rlcli.report.page import page
from rlcli.report.svg import MAX_POINTS, Series, line_chart, number, thinned, ticks
from rlcli.terminal.logs import collected

ATTACK = "</pre></title><script>alert(1)</script><img src=x onerror=alert(2)>"
VOID = {"meta", "br", "path", "circle"}


class Document(HTMLParser):
    """A page as a browser takes it apart. Fails on a tag that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def document(text: str) -> Document:
    """The page, after what must hold for every one: nothing runs, nothing is fetched."""
    seen = Document(text)
    assert not {"script", "img", "link", "iframe", "object", "a"} & set(seen.names)
    assert not [key for key, _ in seen.attributes if key.startswith("on") or key in ("src", "href")]
    assert "url(" not in text
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert len(seen.ids) == len(set(seen.ids))
    return seen


def leave(folder: Path, steps: int = 5, **more: Any) -> Path:
    """What a run of some steps leaves."""
    (folder / "rollouts").mkdir(parents=True)
    (folder / "checkpoints" / "step_5").mkdir(parents=True)
    (folder / "checkpoints" / "step_5" / "policy.safetensors").write_bytes(b"x" * 2048)
    config = Config().model_dump()
    config["train"]["lr"] = more.get("lr", 3e-4)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sources.json").write_text(json.dumps({"train.lr": more.get("origin", "flag --lr")}))
    status = {"state": "finished", "step": steps, "num_steps": steps, "reason": ""}
    (folder / "status.json").write_text(json.dumps(status | more.get("status", {})))
    rows: list[dict[str, Any]] = [{"step": 0, "eval/pass@1": 0.25, "eval/rows": 40}]
    rows += [
        {"step": s, "epoch": 1, "reward_mean": 0.1 * s, "entropy": 0.4, "time/step_s": 2.0,
         "time/sample_s": 1.0, "tokens_per_s": 100.0}
        for s in range(1, steps + 1)
    ]  # fmt: skip
    rows.append({"step": steps, "eval/pass@1": 0.75, "eval/rows": 40, "time/eval_s": 1.0})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    row = {"id": "a:1", "prompt": "1+1=", "response": "2", "ground_truth": "2", "reward": 1.0,
           "error": None, "finish_reason": "stop", "length": 2}  # fmt: skip
    rollouts = [row, {**row, "response": "3", "reward": 0.0}, *more.get("rollouts", [])]
    for step in (1, steps):
        lines = "\n".join(map(json.dumps, rollouts))
        (folder / "rollouts" / f"step_{step:06d}.jsonl").write_text(lines)
    verdict = {"step": 2, "verdict": "kl_high", "says": "far off.", "knob": "Lower train.lr."}
    (folder / "health.jsonl").write_text(json.dumps(verdict) + "\n")
    return folder


def test_a_page_holds_all_that_is_known(tmp_path: Path) -> None:
    run = leave(tmp_path / "one")
    seen = document(page([read_run(run)]))
    for words in (
        "25.0% \u2192 75.0%", "+50.0 points on 40 prompts", "finished at step 5 of 5",
        "step 2", "far off.", "Lower train.lr.", "flag --lr", "0.0003", "1e-06",
        "step 1: best", "step 1: worst, zero", "step 5: best", "checkpoints/step_5", "2.00 KiB",
        "training: 0.1 to 0.5 over steps 1 to 5", "seconds per step, stacked",
    ):  # fmt: skip
        assert words in seen.text, words
    assert seen.names.count("svg") >= 4


def test_what_is_not_ours_stays_text(tmp_path: Path) -> None:
    row = {"prompt": ATTACK, "response": ATTACK, "reward": 2.0, "ground_truth": {"a": ATTACK},
           "parts": {ATTACK: 1.0}, "length": ATTACK}  # fmt: skip
    unscored = {"prompt": "\u202e\x1b[31m\ud800", "response": "", "reward": None, "error": ATTACK}
    run = leave(
        tmp_path / "<script>alert(1)<b>",
        origin=ATTACK,
        status={"state": ATTACK, "reason": ATTACK},
        rollouts=[row, unscored],
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "epoch": 1, f"reward/{ATTACK}": 1.0, ATTACK: 2.0}))
    with (run / "health.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "verdict": ATTACK, "says": ATTACK, "knob": ATTACK}))
    text = page(read_runs([run, leave(tmp_path / "two")]))
    seen = document(text)
    assert "alert(1)" in seen.text
    assert "<script>" in seen.text
    assert "<script" not in text
    assert "<img" not in text
    assert not set(text) & set("\u202e\x1b")
    assert text.encode()
    assert not set("\n".join(text_lines([read_run(run)]))) & set("\u202e\x1b")


def test_broken_files_leave_out_only_what_is_broken(tmp_path: Path) -> None:
    run = leave(tmp_path / "one")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"step": "x"}\n{"epoch": 1}\n' + b"[" * 9000 + b"\n")
        file.write(b'{"step": 6, "epoch": 1, "reward_mean": NaN, "entropy": Infinity}\n')
        file.write(b'{"step": 7, "epoch": 1, "reward_mean": 0.7}\n{"step": 8, "epo')
    for name in ("config.json", "sources.json", "status.json"):
        (run / name).write_text('{"half')
    (run / "health.jsonl").write_text('{"step": 3, "says": 5}\n{"ste')
    (run / "rollouts" / "step_000009.jsonl").write_bytes(b'{"reward": 0.0}\n\xff{"rew')
    (run / "rollouts" / "step_other.jsonl").write_text("{}")
    report = read_run(run)
    assert report.values("reward_mean")[-1] == 0.7
    assert [int(row["step"]) for row in report.steps] == [1, 2, 3, 4, 5, 6, 7]
    assert report.settings == []
    assert [verdict["says"] for verdict in report.verdicts] == ["5"]
    document(page([report]))
    assert "of unknown state" in text_lines([report])[0]


def test_a_run_without_steps_says_so(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.lock").write_text("process 1")
    report = read_run(tmp_path / "one")
    seen = document(page([report]))
    for words in ("No step is finished yet.", "no steps yet to judge", "No rollouts are kept."):
        assert words in seen.text
    said = to_json(report)
    assert (said["before"], said["after"], said["step"], said["verdicts"]) == (None, None, 0, [])


def test_several_runs_share_curves_and_a_table(tmp_path: Path) -> None:
    runs = [leave(tmp_path / "one"), leave(tmp_path / "two", steps=9, lr=1e-5)]
    reports = read_runs([*runs, runs[0]])
    assert [report.name for report in reports] == ["one", "two"]
    seen = document(page(reports))
    for words in ("2 runs", "Settings that differ", "one, held-out pass@1", "two, training",
                  "Time by phase: two", "Settings: one"):  # fmt: skip
        assert words in seen.text, words
    same = [leave(tmp_path / "a" / "x"), leave(tmp_path / "b" / "x")]
    assert len({report.name for report in read_runs(same)}) == 2
    assert "All settings are the same." in document(page(read_runs(same))).text


def test_health_is_judged_afterwards_where_the_run_did_not(tmp_path: Path) -> None:
    run = leave(tmp_path / "one")
    (run / "health.jsonl").unlink()
    assert read_run(run).verdicts == []
    rows = [{"step": s, "epoch": 1, "truncated_share": 0.6} for s in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (verdict,) = read_run(run).verdicts
    assert (verdict["step"], verdict["verdict"]) == (2, "truncation")


def test_a_long_run_makes_no_large_page(tmp_path: Path) -> None:
    row = {"prompt": "p" * 100_000, "response": "w" * 1_000_000, "reward": 5.0, "error": "e" * 9999}
    run = leave(tmp_path / ("n" * 200), rollouts=[row])
    names = [f"metric_{i}" for i in range(300)] + [f"reward/part_{i}" for i in range(40)]
    names += ["reward_mean", "entropy", "kl_divergence", "clip_fraction", "grad_norm"]
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 2001):
            values = {name: math.sin(step / 9) for name in (names if step == 2000 else names[-9:])}
            file.write(json.dumps({"step": step, "epoch": 1, "time/step_s": 1.0, **values}) + "\n")
    many = [{"step": s, "verdict": "x", "says": "s" * 9999, "knob": "k"} for s in range(500)]
    (run / "health.jsonl").write_text("\n".join(map(json.dumps, many)))
    text = page([read_run(run)])
    document(text)
    assert len(text) < 400_000


def test_the_text_fits_80_columns(tmp_path: Path) -> None:
    run = leave(tmp_path / ("\u4e2d\u6587" * 30), status={"reason": "because " * 30})
    lines = text_lines([read_run(run), read_run(leave(tmp_path / "two"))])
    assert max(len(line) + sum(ord(c) > 0x2E80 for c in line) for line in lines) <= 80
    assert any(re.search(r"pass@1 +25\.0% -> 75\.0%", line) for line in lines)
    assert any("step 2: far off. Lower train.lr." in line for line in lines)


def test_a_report_never_fails_its_run(tmp_path: Path) -> None:
    run = leave(tmp_path / "one")
    assert write_report(run) == run / "report.html"
    document((run / "report.html").read_text("utf-8"))
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    with collected(prints=False) as notes:
        assert write_report(run) is None
        assert write_report(tmp_path / "gone") is None
    assert len(notes) == 2
    assert all("is not written" in note for note in notes)


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    report = read_run(leave(tmp_path / "one"))
    write_page([report], tmp_path / "out.html")
    assert (tmp_path / "out.html").read_text("utf-8").endswith("</html>\n")
    assert not list(tmp_path.glob(".*.part"))


# -- drawing ------------------------------------------------------------------------------------


def test_ticks_are_round() -> None:
    assert ticks(0.0, 1.0, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(0, 103, 5) == [0, 25, 50, 75, 100]
    assert ticks(3.0, 3.0, 4) == [3.0]


def test_numbers_have_three_digits() -> None:
    shown = [number(v) for v in (0.01234, 1234.5, 2_500_000, 0.0)]
    assert shown == ["0.0123", "1,234", "2.5M", "0"]
    assert number(0.4567, percent=True) == "45.7%"


def test_long_curves_are_thinned_to_means_with_both_ends() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_001)]
    few = thinned(points)
    assert len(few) <= MAX_POINTS
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert all(abs(y - 0.5) < 0.1 for _, y in few[1:-1])


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e300, 1e300], [1e-300, 2e-300]])
def test_any_curve_lies_inside_its_frame(values: list[float]) -> None:
    points = list(enumerate(values, start=1))
    drawn = line_chart([Series(label="a", points=points)])
    paths = [shape.d.removeprefix("M") for shape in drawn.shapes if shape.d]
    coordinates = [float(x) for path in paths for x in re.split("[ L]", path)]
    assert coordinates
    assert all(0 <= x <= 400 for x in coordinates)
    assert "nan" not in str(drawn)
