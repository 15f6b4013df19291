"""train.sh: arguments go through untouched, and a set-up checkout is not set up again."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
ECHO = """#!/bin/sh
for argument in "$@"; do printf '%s\\0' "$argument"; done
"""


def copy_scripts(folder: Path) -> None:
    for name in ("train.sh", "setup.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("requirements", "scripts"):
        shutil.copytree(ROOT / name, folder / name)


def checkout(folder: Path, *, is_set_up: bool = True) -> Path:
    """A copy of the scripts whose python prints its arguments, each ended by NUL."""
    copy_scripts(folder)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(ECHO)
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    if is_set_up:
        made_from = [ROOT / "pyproject.toml", *sorted((ROOT / "requirements").glob("*.txt"))]
        stamp = b"".join(path.read_bytes() for path in made_from)
        (folder / ".venv" / ".rlcli-run").write_bytes(stamp)
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


SYSTEM_PYTHON = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec python3 "$@"
for last; do :; done
mkdir -p "$last/bin" "$last/lib/python3.11/site-packages/pip-24.0.dist-info"
cp "$(dirname "$0")/venv_python" "$last/bin/python"
"""
VENV_PYTHON = """#!/bin/sh
case "$*" in *"pip install"*) ;; *) exit;; esac
echo begin >> "$LOG"
until [ -e "$GO" ]; do sleep 0.02; done
echo end >> "$LOG"
"""
SET_UP = 'set -euo pipefail; . "$1/setup.sh"; rlcli_setup "$1" run; echo ready'


def start_setup(folder: Path) -> subprocess.Popen[str]:
    """A set-up of a checkout that has none, by pythons that install until there is a file `go`."""
    for name, text in (("python", SYSTEM_PYTHON), ("venv_python", VENV_PYTHON)):
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    if not (folder / "setup.sh").exists():
        copy_scripts(folder)
    env = {"PYTHON": str(folder / "bin" / "python"), "GO": str(folder / "go")}
    return subprocess.Popen(
        ["bash", "-c", SET_UP, "bash", str(folder)],
        env={**os.environ, **env, "LOG": str(folder / "log")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def await_text(path: Path, text: str) -> None:
    wait_until(lambda: path.is_file() and text in path.read_text())


def test_two_starts_of_one_checkout_install_once(tmp_path: Path) -> None:
    first = start_setup(tmp_path)
    await_text(tmp_path / "log", "begin")
    second = start_setup(tmp_path)
    assert second.stdout is not None
    waiting = f"waiting for another start that sets up {tmp_path}/.venv\n"
    assert second.stdout.readline() == waiting
    (tmp_path / "go").touch()
    told = [start.communicate(timeout=60)[0] for start in (first, second)]
    assert told[0].endswith("ready\n")
    assert told[1] == "ready\n"
    assert (tmp_path / "log").read_text() == "begin\nend\n"


def test_a_start_that_was_killed_keeps_nobody_waiting(tmp_path: Path) -> None:
    first = start_setup(tmp_path)
    await_text(tmp_path / "log", "begin")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    (tmp_path / "go").touch()
    said, _ = start_setup(tmp_path).communicate(timeout=60)
    assert said == "ready\n"


@pytest.mark.parametrize(
    ("package", "asked"),
    [
        ("deepspeed", ["--engine", "deepspeed"]),
        ("deepspeed", ["train.engine=deepspeed"]),
        ("vllm", ["rollout.engine=vllm"]),
        ("vllm", ["actor_rollout_ref.rollout.name=vllm", "rollout.n=4"]),
    ],
)
def test_an_engine_is_installed_once_where_a_run_asks_for_it(
    tmp_path: Path, package: str, asked: list[str]
) -> None:
    script = checkout(tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *find_spec*) [ -f "$0.has" ];; *install*) touch "$0.has";; esac\n'
    )
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\n")
    driver.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told = []
    for words in ([], asked, asked):
        done = subprocess.run(
            [str(script), *words], capture_output=True, check=True, text=True, env=env
        )
        told.append(done.stderr)
    said = f"installing {package} into {tmp_path}/.venv (once, some minutes)\n"
    assert told == ["", said, ""]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_without_a_gpu_vllm_is_not_installed_behind_ones_back(tmp_path: Path) -> None:
    script = checkout(tmp_path)
    asked = [str(script), "rollout.engine=vllm"]
    done = subprocess.run(asked, capture_output=True, check=True, text=True)
    assert done.stderr == ""
