"""train.sh: arguments go through untouched, and a set-up checkout is not set up again."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ECHO = """#!/bin/sh
for argument in "$@"; do printf '%s\\0' "$argument"; done
"""


def checkout(folder: Path, *, is_set_up: bool = True) -> Path:
    """A copy of the scripts whose python prints its arguments, each ended by NUL."""
    for name in ("train.sh", "setup.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(ECHO)
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    if is_set_up:
        shutil.copy(ROOT / "pyproject.toml", folder / ".venv" / ".rlcli-run")
    return folder / "train.sh"


def test_every_argument_goes_through_untouched(tmp_path: Path) -> None:
    odd = [
        "$(touch x)",
        "; rm -rf .",
        "a b",
        "line\nbreak",
        "",
        "*",
        "'\"",
        "\u4f60\u597d",
        "--x=1",
    ]
    done = subprocess.run([str(checkout(tmp_path)), *odd], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == ["-m", "rlcli.cli.main", "train", *odd]
    assert not (tmp_path / "x").exists()


def test_it_runs_from_any_directory_and_through_a_path_with_spaces(tmp_path: Path) -> None:
    home = tmp_path / "my checkout"
    home.mkdir()
    script = checkout(home)
    done = subprocess.run([str(script), "a"], capture_output=True, check=True, cwd="/")
    assert done.stdout.decode().endswith("train\0a\0")


def test_an_old_python_is_refused_with_the_cure(tmp_path: Path) -> None:
    script = checkout(tmp_path, is_set_up=False)
    old = tmp_path / "python3.8"
    pretend = "import sys; sys.version_info = (3, 8); sys.version = '3.8.1'; exec(sys.stdin.read())"
    old.write_text(f'#!/bin/sh\nexec python3 -c "{pretend}"\n')
    old.chmod(0o755)
    done = subprocess.run(
        [str(script)], capture_output=True, check=False, env={**os.environ, "PYTHON": str(old)}
    )
    assert done.returncode != 0
    assert b"needs Python 3.11 or newer, this is 3.8.1" in done.stderr
    assert b"PYTHON=" in done.stderr
