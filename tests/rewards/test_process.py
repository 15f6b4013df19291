"""The environment that scoring processes get."""

from __future__ import annotations

import pytest

from rlcli.rewards.process import child_environment


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


def test_everything_else_stays_and_threads_and_hashes_are_fixed() -> None:
    given = {"PATH": "/bin", "TOKENIZERS_PARALLELISM": "false", "KEYBOARD": "us"}
    environment = child_environment(given)
    assert given.items() <= environment.items()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PYTHONHASHSEED"] == "0"
    assert child_environment({"OMP_NUM_THREADS": "4"})["OMP_NUM_THREADS"] == "4"
