"""A real run over two ranks, one of which is killed: it ends like the undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rlcli.run_dir.folder import RunDir

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "--preset", "quickstart", "--n_gpus", "2", "run.seed=3", "run.save_every=2", "run.eval_every=0",
    "train.prompts_per_step=16", "train.mini_batch_prompts=8", "train.max_steps=14", "data.val=[]",
]  # fmt: skip


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rlcli.cli.main", "train", *WORDS, *more]
    return subprocess.Popen(
        [*command, "--output_dir", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder.parent,
    )


def rank_process(agent: int, rank: int) -> psutil.Process | None:
    """The process of a rank, once it has started."""
    for child in psutil.Process(agent).children():
        if child.environ().get("RANK") == str(rank):
            return child
    return None


def await_steps(run: subprocess.Popen[str], folder: Path, lines: int) -> None:
    """Until `lines` steps are in the metrics."""
    metrics, until = folder / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < until and run.poll() is None:
        if metrics.is_file() and metrics.read_text().count("policy_loss") >= lines:
            break
        time.sleep(0.01)


def kill_when(run: subprocess.Popen[str], folder: Path, rank: int, lines: int) -> None:
    """Kill a rank once `lines` steps are in the metrics."""
    await_steps(run, folder, lines)
    process = rank_process(run.pid, rank)
    assert process is not None
    process.send_signal(signal.SIGKILL)


def states_until_end(run: subprocess.Popen[str], folder: Path) -> set[str]:
    """What `rlcli runs list` has shown since."""
    states: set[str] = set()
    while run.poll() is None:
        states.add(RunDir(folder).state())
        time.sleep(0.02)
    return states | {RunDir(folder).state()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run = start(folder)
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 0, output
    return load_file(folder / "checkpoints" / "step_14" / "policy.safetensors")


DRAWS = [0, *(pytest.param(draw, marks=pytest.mark.nightly) for draw in range(1, 20))]
"""Every run kills once at one random moment; nightly runs use 20 moments."""


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("draw", DRAWS)
def test_the_weights_are_those_of_the_run_that_was_not_disturbed(
    draw: int, rank: int, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    lines = random.Random(draw).randrange(1, 13)
    run = start(tmp_path / "run")
    kill_when(run, tmp_path / "run", rank, lines)
    states = states_until_end(run, tmp_path / "run")
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 0, output
    assert states == {"running", "finished"}
    assert f"rank {rank} was killed (SIGKILL)" in output
    # the first checkpoint is of step 2, and may not be whole yet when a rank is killed there
    assert "starting again from " + ("step " if lines > 3 else "") in output
    found = load_file(tmp_path / "run" / "checkpoints" / "step_14" / "policy.safetensors")
    assert all(torch.equal(value, undisturbed[name]) for name, value in found.items())


@pytest.mark.parametrize("draw", DRAWS)
def test_a_run_whose_agent_was_killed_leaves_no_process_and_can_be_resumed(
    draw: int, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = start(tmp_path / "run")
    await_steps(run, tmp_path / "run", random.Random(draw).randrange(1, 13))
    started = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    _, left = psutil.wait_procs(started, timeout=5)
    assert not left
    run.communicate()
    resumed = start(tmp_path / "run", "--resume", "auto")
    output, _ = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, output
    found = load_file(tmp_path / "run" / "checkpoints" / "step_14" / "policy.safetensors")
    assert all(torch.equal(value, undisturbed[name]) for name, value in found.items())


def test_a_signal_to_every_process_saves_once(tmp_path: Path) -> None:
    """As SLURM sends it to all that a job has started."""
    run = start(tmp_path / "run", "train.max_steps=500", "run.preempt_exit_code=85")
    await_steps(run, tmp_path / "run", 1)
    for process in [*psutil.Process(run.pid).children(), run]:
        process.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 85, output
    status = RunDir(tmp_path / "run").status()
    assert status is not None
    assert status["state"] == "preempted"
    assert (tmp_path / "run" / "checkpoints" / f"step_{status['step']}").is_dir()
