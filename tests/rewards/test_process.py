"""What scoring processes get: an environment without keys, and the kernel's first choice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlcli.rewards.process import ScoringProcess, child_environment
from rlcli.rewards.signatures import SINGLE


@pytest.mark.parametrize(
    "name",
    [
        "DASHSCOPE_API_KEY",
        "OPENAI_API_KEY",
        "GEMINI_API_KEY",
        "ANTHROPIC_API_KEY",
        "WANDB_API_KEY",
        "HF_TOKEN",
        "GITHUB_TOKEN",
        "CLIENT_SECRET",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY",
        "DB_PASSWORD",
        "openai_api_key",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ],
)
def test_keys_are_left_out(name: str) -> None:
    assert name not in child_environment({name: "x"})


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_kernel_short_of_memory_ends_a_scoring_process_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "def compute_score(**row): return int(open('/proc/self/oom_score_adj').read())\n"
    )
    process = ScoringProcess(f"{tmp_path / 'reward.py'}:compute_score", timeout_s=60.0)
    try:
        process.wait_until_ready()
        names = (*SINGLE, "messages")
        assert process.call(dict.fromkeys(names, ()) | {"columns": {}})["score"] >= 500
    finally:
        process.close()


def test_everything_else_stays_and_threads_and_hashes_are_fixed() -> None:
    given = {"PATH": "/bin", "TOKENIZERS_PARALLELISM": "false", "KEYBOARD": "us"}
    environment = child_environment(given)
    assert given.items() <= environment.items()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PYTHONHASHSEED"] == "0"
    assert child_environment({"OMP_NUM_THREADS": "4"})["OMP_NUM_THREADS"] == "4"
