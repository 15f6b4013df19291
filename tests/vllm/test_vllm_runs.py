"""Whole runs that sample with vLLM, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from vllm_parts import read_lines

ROOT = Path(__file__).resolve().parent.parent.parent
NIGHTLY = pytest.mark.nightly
QUICKSTART = ["--preset", "quickstart", "rollout.engine=vllm", "--seed", "1"]


def train(folder: Path, *settings: str) -> list[dict[str, Any]]:
    """The metrics of a run that ended well."""
    command = [sys.executable, "-m", "rlcli.cli.main", "train", *QUICKSTART, *settings]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output_dir", str(folder)],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    return read_lines(folder / "metrics.jsonl")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return train(tmp_path_factory.mktemp("alone") / "run", "--max_steps", "20")


def test_the_quickstart_learns_with_vllm_as_it_does_with_the_native_sampler(
    alone: list[dict[str, Any]],
) -> None:
    scores = [line["eval/pass@1"] for line in alone if "eval/pass@1" in line]
    assert scores[0] < 0.4
    assert scores[-1] > 0.6
    steps = [line for line in alone if "reward_mean" in line]
    assert len(steps) == 20
    for line in steps:  # as the correction sees it: on by default, and with nothing to do
        assert line["sampler/logprob_diff_mean"] <= line["sampler/logprob_diff_max"] < 1e-4
        assert line["sampler/weight_mean"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["train.engine=deepspeed", "train.zero_stage=2"], marks=NIGHTLY),
        # ZeRO-3 is in every run of the tests with servers, below
        pytest.param(["train.engine=deepspeed", "train.zero_stage=3"], marks=NIGHTLY),
        ["train.engine=fsdp", "rollout.tensor_parallel=2"],
        pytest.param(["train.engine=fsdp", "lora.rank=4"], marks=NIGHTLY),
        pytest.param(
            ["lora.rank=4", "train.engine=deepspeed", "train.zero_stage=2"], marks=NIGHTLY
        ),
        pytest.param(
            ["lora.rank=4", "train.engine=deepspeed", "train.zero_stage=3"], marks=NIGHTLY
        ),
    ],
    ids=["zero2", "zero3", "fsdp, tensor_parallel", "fsdp, lora", "zero2, lora", "zero3, lora"],
)
def test_two_processes_sample_what_one_does(
    tmp_path: Path, alone: list[dict[str, Any]], settings: list[str]
) -> None:
    lines = train(tmp_path / "run", "--n_gpus", "2", "--max_steps", "2", *settings)
    steps = [line for line in lines if "reward_mean" in line]
    first = next(line for line in alone if "reward_mean" in line)
    assert steps[0]["reward_mean"] == first["reward_mean"]
    assert steps[0]["response_length_mean"] == first["response_length_mean"]
    assert all(line["sampler/logprob_diff_max"] < 1e-4 for line in steps)


@pytest.mark.parametrize(
    "engine",
    [
        ["train.engine=deepspeed", "train.zero_stage=3"],
        pytest.param(["train.engine=fsdp"], marks=NIGHTLY),
    ],
    ids=["zero3", "fsdp"],
)
def test_servers_sample_what_an_engine_in_the_process_does(
    tmp_path: Path, alone: list[dict[str, Any]], engine: list[str]
) -> None:
    folder = tmp_path / "run"
    served = ["rollout.engine=vllm_server", "rollout.replicas=2"]
    lines = train(folder, "--max_steps", "2", "--n_gpus", "2", *served, *engine)
    steps = [line for line in lines if "reward_mean" in line]
    first = next(line for line in alone if "reward_mean" in line)
    assert steps[0]["reward_mean"] == first["reward_mean"]
    assert all(line["sampler/logprob_diff_max"] < 1e-4 for line in steps)
    assert {"vllm_0.log", "vllm_1.log"} <= {path.name for path in folder.iterdir()}
    left = [process for process in psutil.process_iter() if str(folder) in _command(process)]
    assert not left


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize(
    "engine",
    ["vllm", pytest.param("vllm_server", marks=NIGHTLY)],
)
def test_episodes_with_tools_are_sampled_as_the_trainer_sees_them(
    tmp_path: Path, engine: str
) -> None:
    more = ("--preset", "quickstart-tools", f"rollout.engine={engine}", "--max_steps", "2")
    lines = train(tmp_path / "run", *more, "run.eval_every=0")
    steps = [line for line in lines if "reward_mean" in line]
    assert len(steps) == 2
    for line in steps:
        assert line["episode/turns_mean"] > 1.0
        assert line["env/failed"] == 0
        assert line["sampler/logprob_diff_max"] < 1e-4
