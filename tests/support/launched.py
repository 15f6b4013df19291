"""Ranks, agents of tiny scripts in place of ranks, and whole nodes, as processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from rlcli.distributed.known_run import KnownRun, status_stamp
from rlcli.distributed.rank_env import NodeEnv
from rlcli.launcher import inherited
from rlcli.launcher.agent import Agent
from rlcli.launcher.job import Job, Limits
from rlcli.launcher.record import held
from rlcli.launcher.rendezvous import open_store
from rlcli.run_dir.checkpoint import Resume
from rlcli.run_dir.folder import RunDir
from rlcli.terminal.logs import LOGGER, Shown, show_with

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import ctypes, json, os, signal, sys, time
from pathlib import Path
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # ends with its agent, as ranks do
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
folder = Path(os.environ["TEST_RUN_DIR"])
relaunches = int(os.environ["TORCHELASTIC_RESTART_COUNT"])

def await_file(name):
    while not (folder / name).exists():
        time.sleep(0.01)

def write(name, text=""):
    (folder / f".{name}.{os.getpid()}").write_text(text)
    os.rename(folder / f".{name}.{os.getpid()}", folder / name)

folder.mkdir(parents=True, exist_ok=True)
def start_heartbeat():
    for _ in range(6):
        (folder / ".alive").touch()
        time.sleep(0.1)

def write_status(state, reason=""):
    write("status.json", json.dumps({"state": state, "step": 3, "reason": reason}))

if rank:
    log = open(folder / f"rank_{rank}.log", "a")
    print(f"--- process {os.getpid()} ---", file=log, flush=True)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
write(f"pid_{rank}_{relaunches}", str(os.getpid()))
"""
"""What every script begins with. Files appear whole."""

DRIVER = """
import json, os, sys
from pathlib import Path
from rlcli.config.resolver import resolve
from rlcli.errors import RlcliError
from rlcli.launcher import launch
from rlcli.launcher.job import Limits
told = json.loads(sys.argv[1])
try:
    resolved = resolve(flags={}, overrides=told["overrides"], files=[], env=os.environ)
    limits = Limits(**told["limits"])
    more = {"num_gpus": 0, "command": told["command"], "limits": limits}
    code = launch(resolved, os.environ, Path.cwd(), **more)
except RlcliError as error:
    print(f"error: {error}", file=sys.stderr)
    code = error.exit_code
sys.exit(code)
"""


def command_of(script: str, folder: Path) -> tuple[str, ...]:
    """What runs `script` after HEAD, without the packages of this environment."""
    path = folder / "rank.py"
    path.write_text(HEAD + script)
    return (sys.executable, "-ESs", str(path))


@dataclass
class Lead:
    """One node whose agent is this process. told: what it said."""

    folder: Path
    resume: Resume = "newest"
    preempt_exit_code: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def __call__(self, script: str, *, num: int = 2, **limits: Any) -> int:
        job = Job(
            command=command_of(script, self.folder),
            launch=NodeEnv(),
            num_local=num,
            preempt_exit_code=self.preempt_exit_code,
            limits=Limits(**limits),
        )
        stamp = status_stamp(self.run_dir)
        run = KnownRun(path=self.run_dir, resume=self.resume, stamp=stamp)
        with pytest.MonkeyPatch.context() as patch:
            for name, text in (inherited() | {"TEST_RUN_DIR": str(self.run_dir)}).items():
                patch.setenv(name, text)
            store = open_store(job, lambda text: None)
            agent = Agent(job, *store, run=run)
            shown = Shown(lambda text, level: self.told.append(text))
            show_with(shown)
            try:
                with held(RunDir(self.run_dir), resumes=True):
                    agent.run()
            finally:
                LOGGER.removeHandler(shown)
        return agent.code

    def pid(self, rank: int, relaunches: int = 0) -> int:
        """Of a rank, once it has begun."""
        path = self.run_dir / f"pid_{rank}_{relaunches}"
        wait_until(path.exists)
        return int(path.read_text())


def is_alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def ranks_of(
    size: int, command: Sequence[object], **env: str
) -> Iterator[list[subprocess.Popen[str]]]:
    """`size` processes of a Python script on this machine; killed at the end.

    command: what follows the interpreter.
    """
    own = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "GLOO_SOCKET_IFNAME": "lo", **env}
    ranks = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def run_ranks(size: int, command: Sequence[object], **env: str) -> list[tuple[int, str]]:
    """(exit code, output) of each rank, once all have ended."""
    with ranks_of(size, command, **env) as ranks:
        outputs = [rank.communicate(timeout=500)[0] for rank in ranks]
        return [(rank.returncode, text) for rank, text in zip(ranks, outputs, strict=True)]


def check_ranks_end_well(size: int, command: Sequence[object], **env: str) -> None:
    """Run the ranks, each of which must end with exit code 0."""
    ends = run_ranks(size, command, **env)
    assert [code for code, _ in ends] == [0] * size, "\n".join(text[-3000:] for _, text in ends)


def start_node(
    folder: Path,
    command: Sequence[str],
    *overrides: str,
    env: dict[str, str] | None = None,
    **limits: Any,
) -> subprocess.Popen[str]:
    """An agent as a process of its own, whose output can be read."""
    told = {
        "overrides": [f"run.output_dir={folder / 'run'}", *overrides],
        "command": list(command),
        "limits": limits,
    }
    run_dir = str(folder / "run")
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(told)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TEST_RUN_DIR": run_dir,
            **(env or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
