"""`rlcli runs`: what there is, how it stands, and going on with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlcli.cli.main import main
from rlcli.cli.runs import runs_app
from rlcli.errors import RunDirError
from rlcli.run_dir.folder import TAIL_BYTES, RunDir, find_run

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ["--preset", "quickstart", "rollout.val_n=1", "train.prompts_per_step=8",
         "train.mini_batch_prompts=8", "run.save_every=1"]  # fmt: skip


@pytest.fixture(autouse=True)
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(*arguments: str) -> int:
    try:
        runs_app([*arguments], standalone_mode=False)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def train(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rlcli", "train", *SMALL, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def leave(folder: Path, state: str = "finished") -> RunDir:
    """What a run of 4 out of 9 steps leaves, its process gone."""
    folder.mkdir(parents=True)
    run = RunDir(folder)
    (folder / "run.lock").write_text("process 1")
    run.write_status(state, 4, resumable=True, reason="", num_steps=9)  # type: ignore[arg-type]
    rows = [
        {"step": 4, "epoch": 1, "reward_mean": 0.25},
        {"step": 4, "eval/pass@1": 0.5, "x": None},
    ]
    run.metrics.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 5, "rew')
    return run


def test_list_shows_state_steps_and_newest_scores(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(cwd / "outputs" / "one")
    assert runs("list", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row.pop("age_s") < 60
    assert row == {
        "name": "one",
        "path": "outputs/one",
        "state": "finished",
        "step": 4,
        "num_steps": 9,
        "reward_mean": 0.25,
        "eval/pass@1": 0.5,
    }
    runs("list")
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "finished", "4/9", "0.250", "50.0%", "0", "s", "one",
    ]  # fmt: skip


def test_a_folder_of_hundreds_of_runs_is_listed_by_the_ends_of_their_metrics(
    cwd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"metric_{number}" for number in range(40)]
    rows = [
        {"step": step, "epoch": 1, "reward_mean": 0.5, **dict.fromkeys(names, 0.123456789)}
        for step in range(1, 801)
    ]
    first = leave(cwd / "outputs" / "run0")
    first.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert first.metrics.stat().st_size > 2**19
    for number in range(1, 300):
        run = leave(cwd / "outputs" / f"run{number}")
        run.metrics.unlink()
        run.metrics.hardlink_to(first.metrics)
        (run.path / "report.html").write_text("<html></html>")
    for number in range(300):
        (cwd / "outputs" / f"notes{number}").mkdir()
        (cwd / "outputs" / f"report{number}.html").write_text("<html></html>")
    lengths: list[int] = []

    def loads(text: str | bytes, **more: Any) -> Any:
        lengths.append(len(text))
        return json.JSONDecoder(**more).decode(text if isinstance(text, str) else text.decode())

    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", loads)
        runs("list", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [row["reward_mean"] for row in found] == [0.5] * 300
    assert 300 < sum(lengths) < 300 * (TAIL_BYTES + 2000)


def test_a_run_that_nobody_holds_was_killed(cwd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = leave(cwd / "outputs" / "one", "running")
    assert run.state() == "killed"
    code = (
        "import sys; from pathlib import Path\n"
        "from rlcli.run_dir.folder import RunDir\n"
        "run = RunDir(Path(sys.argv[1])); run.hold(resumes=True)\n"
        "print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert run.state() == "running"
        assert run.holder() == f"process {process.pid}"
        runs("status", "one", "--json")
        said = json.loads(capsys.readouterr().out)
        assert (said["state"], said["held_by"]) == ("running", f"process {process.pid}")
        assert said["resume"] is None
        process.communicate("\n")
    runs("status", "one", "--json")
    said = json.loads(capsys.readouterr().out)
    assert (said["state"], said["held_by"]) == ("killed", None)
    assert said["resume"] == "rlcli runs resume one"


def test_looking_at_a_run_does_not_keep_others_from_it(cwd: Path) -> None:
    run = leave(cwd / "outputs" / "one")
    for _ in range(20):
        assert run.holder() is None
    other = RunDir(run.path)
    other.hold(resumes=True)
    other.release()


def test_list_takes_folders_and_says_where_nothing_is(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs("list") == 0
    assert capsys.readouterr().out == "no runs in outputs\n"
    leave(cwd / "elsewhere" / "two")
    runs("list", "elsewhere", "elsewhere/two")
    assert capsys.readouterr().out.count("two") == 2
    with pytest.raises(RunDirError, match="is not a directory"):
        runs("list", "nowhere")


def test_a_run_is_found_by_path_name_or_latest(cwd: Path) -> None:
    for name in ("one", "two"):
        run = leave(cwd / "outputs" / name)
        run.checkpoints.mkdir()
    RunDir(cwd / "outputs" / "one").link_latest()
    expected = Path("outputs/one")
    for text in ("one", "outputs/one", str(cwd / "outputs" / "one"), "latest", "one/"):
        assert find_run(text, cwd) == expected
    with pytest.raises(RunDirError, match="Nearest: two"):
        find_run("tow", cwd)
    with pytest.raises(RunDirError, match="neither a run directory nor a name"):
        find_run("", cwd)


def test_status_shows_what_is_left_and_how_to_go_on(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = leave(cwd / "my runs" / "one", "preempted")
    (run.checkpoints / "step_4").mkdir(parents=True)
    row = {"step": 3, "verdict": "kl_high", "says": "KL is high.", "knob": "Lower train.lr."}
    (run.path / "health.jsonl").write_text(json.dumps(row))
    assert runs("status", "my runs/one") == 0
    out = capsys.readouterr().out
    assert "health (step 3): KL is high. Lower train.lr." in out
    for words in ("stopped, step 4/9", "reward_mean  0.25", "checkpoints: step_4"):
        assert words in out
    assert runs("list", "my runs") == 0
    assert "stopped" in capsys.readouterr().out
    assert runs("status", "my runs/one", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "preempted"  # scripts rely on it
    assert "go on with: rlcli runs resume 'my runs/one'" in out


def test_resume_does_what_train_resume_does(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        assert train(monkeypatch, "--max_steps", "2", "--output_dir", f"outputs/{name}") == 0
    capsys.readouterr()
    assert runs("resume", "a", "train.max_steps=3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["step"] == 3
    config = "outputs/b/config.json"
    monkeypatch.setattr(
        sys, "argv",
        ["rlcli", "train", "--config", config, "--output_dir", "outputs/b", "--resume", "auto",
         "train.max_steps=3"],
    )  # fmt: skip
    with pytest.raises(SystemExit):
        main()
    said = []
    for name in ("a", "b"):
        folder = cwd / "outputs" / name
        tensors = (folder / "checkpoints" / "step_3" / "policy.safetensors").read_bytes()
        settings = json.loads((folder / "config.json").read_text())
        settings["run"].pop("output_dir")
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        stable = ("time/", "tokens_per_s", "memory/")
        kept = [{k: v for k, v in row.items() if not k.startswith(stable)} for row in rows]
        said.append((tensors, settings, kept))
    assert said[0] == said[1]


def test_resume_keeps_the_settings_whatever_the_shell_has_now(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, "--max_steps", "1", "--output_dir", "outputs/a") == 0
    before = json.loads((cwd / "outputs" / "a" / "config.json").read_text())
    for name, value in (("ROLLOUT_N", "2"), ("N_GPUS", "8"), ("RLCLI_LANG", "zh")):
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    assert runs("resume", "a", "train.max_steps=2") == 0
    out = capsys.readouterr().out
    after = json.loads((cwd / "outputs" / "a" / "config.json").read_text())
    assert after["rollout"] == before["rollout"]
    assert after["train"] == before["train"] | {"max_steps": 2}
    assert after["run"]["lang"] == "zh"
    assert "rollout.n was" not in out


def test_a_finished_run_says_so(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, "--max_steps", "2", "--run_name", "one") == 0
    capsys.readouterr()
    assert runs("resume", "one") == 0
    assert "outputs/one is finished: 2 steps are done" in capsys.readouterr().out
    assert runs("resume", "one", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "finished"
    assert runs("resume", "one", "train.max_steps=1") == 0
    assert "only 1 are asked for" in capsys.readouterr().out


def test_a_run_without_settings_cannot_be_resumed(cwd: Path) -> None:
    run = leave(cwd / "outputs" / "one", "preempted")
    with pytest.raises(RunDirError, match=r"has no config\.json"):
        runs("resume", "one")
    (run.path / "config.json").write_text('{"train": {"speed": 3}}')
    with pytest.raises(RunDirError, match="cannot be read"):
        runs("resume", "one")
