"""`rlcli report`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rlcli.cli.main import main


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two steps in outputs/."""
    folder = tmp_path / "outputs" / "one"
    folder.mkdir(parents=True)
    status = {"state": "preempted", "step": 2, "num_steps": 9, "resumable": True, "reason": "x"}
    (folder / "status.json").write_text(json.dumps(status))
    rows = [
        {"step": 0, "eval/pass@1": 0.5},
        {"step": 1, "epoch": 1, "reward_mean": 0.25, "kl_divergence": None},
        {"step": 2, "epoch": 1, "reward_mean": 0.5},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return folder


def report(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    return int(ended.value.code or 0)


def test_text_says_how_it_went(capsys: pytest.CaptureFixture[str]) -> None:
    assert report("one") == 0
    out = capsys.readouterr().out
    assert out.startswith("one: stopped (x), step 2/9\n")
    assert "50.0% -> 50.0%" in out
    assert "health: nothing to report" in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert report("one", "latest", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    (found,) = said["runs"]
    expected = {"run": "one", "state": "preempted", "step": 2, "before": 0.5, "after": 0.5,
                "reward_last": 0.5, "verdicts": [], "checkpoints": []}  # fmt: skip
    assert expected.items() <= found.items()
    assert said["html"] is None


def test_html_goes_into_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report("outputs/one", "--html", "a.html") == 0
    assert capsys.readouterr().out == "report: a.html\n"
    assert (tmp_path / "a.html").read_text("utf-8").startswith("<!doctype html>")
    assert report("one", "--html", "a.html", "--json") == 0
    assert json.loads(capsys.readouterr().out)["html"] == "a.html"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["oen"], "Nearest: one."),
        (["one", "--html", "gone/a.html"], "gone/a.html cannot be written: No such file"),
        (["one", "--html", "outputs"], "outputs cannot be written: Is a directory"),
    ],
)
def test_what_cannot_be_done_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(*arguments) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert len(told.err.splitlines()) <= 3
    assert told.out == ""


def test_a_report_needs_no_torch(run: Path) -> None:
    import subprocess

    root = Path(__file__).resolve().parent.parent.parent
    code = (
        "import sys\nfrom rlcli.cli.main import main\n"
        "try:\n    main(['report', sys.argv[1], '--html', 'b.html'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'pyarrow'} & set(sys.modules)\nassert not heavy, heavy"
    )
    env = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, env=env)
