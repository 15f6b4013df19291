"""The run directory belongs to one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlcli.errors import RunDirError
from rlcli.run_dir.folder import RunDir, write_json

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_held_directory_names_its_holder(tmp_path: Path) -> None:
    first = RunDir(tmp_path / "run")
    first.hold(resumes=False)
    with pytest.raises(RunDirError, match=f"in use by process {os.getpid()}"):
        RunDir(tmp_path / "run").hold(resumes=True)
    first.release()
    second = RunDir(tmp_path / "run")
    second.hold(resumes=True)
    second.release()


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from rlcli.run_dir.folder import RunDir\n"
        "RunDir(Path(sys.argv[1])).hold(resumes=False); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False, cwd=ROOT)
    run = RunDir(tmp_path / "run")
    run.hold(resumes=False)
    run.release()


def test_an_existing_run_is_not_walked_over(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.write_status("preempted", 40, resumable=True, reason="SIGTERM")
    with pytest.raises(RunDirError, match=r"preempted at step 40.*\n.*--resume auto"):
        RunDir(tmp_path).hold(resumes=False)
    folder.hold(resumes=True)
    folder.release()


def test_files_of_no_run_are_not_walked_over(tmp_path: Path) -> None:
    for name in (".git", "slurm.out", "train.log"):
        (tmp_path / name).write_text("")
    RunDir(tmp_path).probe(resumes=False)
    assert len(list(tmp_path.iterdir())) == 3
    for name in ("a.py", "b.py", "c.py", "d.py"):
        (tmp_path / name).write_text("")
    for refuse in (RunDir(tmp_path).probe, RunDir(tmp_path, elsewhere="choose x").hold):
        with pytest.raises(RunDirError, match=r"a\.py, b\.py, c\.py, \.\.\.\.\n.*choose"):
            refuse(resumes=True)
    assert not (tmp_path / "run.lock").exists()


def test_a_run_s_own_directory_is_no_stranger(tmp_path: Path) -> None:
    (tmp_path / "brought" / "checkpoints" / "step_3").mkdir(parents=True)
    brought = RunDir(tmp_path / "brought")
    with pytest.raises(RunDirError, match="of no run: checkpoints"):
        brought.probe(resumes=False)
    brought.probe(resumes=True)
    begun = RunDir(tmp_path / "begun")
    begun.hold(resumes=False)
    begun.release()
    (begun.path / "console.txt").write_text("")
    begun.probe(resumes=False)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="Choose another --output_dir"):
        RunDir(tmp_path / "file" / "run").hold(resumes=False)


def test_write_json_replaces_whole_files(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": "\u4e2d"})
    write_json(tmp_path / "a.json", {"x": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_checkpoints_beside_the_runs_points_at_the_latest(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run = RunDir(tmp_path / name)
        run.hold(resumes=False)
        run.checkpoints.mkdir()
        run.link_latest()
        run.release()
    assert (tmp_path / "checkpoints").resolve() == tmp_path / "two" / "checkpoints"


def test_a_real_folder_called_checkpoints_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    run = RunDir(tmp_path / "one")
    run.hold(resumes=False)
    run.link_latest()
    run.release()
    assert not (tmp_path / "checkpoints").is_symlink()


def test_settings_are_read_by_key_and_a_broken_file_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(RunDirError, match=r"has no config\.json"):
        run.settings()
    (tmp_path / "config.json").write_text('{"train": {"lr": 0.5, "speed": 3}}')
    assert run.settings() == {"train.lr": 0.5}
    for text in ("{", "[]", "7"):
        (tmp_path / "config.json").write_text(text)
        for read in (run.settings, run.config):
            with pytest.raises(RunDirError, match="cannot be read"):
                read()
