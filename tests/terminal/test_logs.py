"""What -v, --quiet and a user's own logging show."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlcli.terminal.logs import LOGGER, Shown, collected, show_with, take_level

TRAIN = ("train", "--preset", "quickstart", "--max_steps", "1", "train.prompts_per_step=8")


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlcli.cli.main", *TRAIN, "data.val_limit=8", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_quiet_prints_the_result_and_the_log_has_all(tmp_path: Path) -> None:
    done = run("--quiet", "--output_dir", "run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Actor Loss" not in done.stdout
    assert "Held-out pass@1" in done.stdout
    assert len(done.stdout.splitlines()) < 6
    assert "Actor Loss" in (tmp_path / "run" / "console.log").read_text()


def test_verbose_prints_the_time_and_the_module(tmp_path: Path) -> None:
    done = run("-v", "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if "rollouts sampled in" in line]
    assert line.split()[1] == "rlcli.trainer.rollout_step:"
    assert line in (tmp_path / "run" / "console.log").read_text()


@pytest.mark.parametrize(
    ("words", "rest", "level"),
    [
        (["train", "-v"], ["train"], logging.DEBUG),
        (["-q", "eval", "RUN"], ["eval", "RUN"], logging.WARNING),
        (["train", "--lr", "-1"], ["train", "--lr", "-1"], logging.INFO),
        (["-q", "train", "--verbose"], ["train"], logging.DEBUG),
    ],
)
def test_the_options_stand_anywhere(words: list[str], rest: list[str], level: int) -> None:
    assert take_level(words) == (rest, level)


def test_a_message_names_its_rank() -> None:
    shown: list[str] = []
    handler = Shown(lambda text, level: shown.append(text), rank=3)
    show_with(handler)
    try:
        logging.getLogger("rlcli.engines").warning("%d gradients are not finite", 2)
    finally:
        LOGGER.removeHandler(handler)
    assert shown == ["rank 3: 2 gradients are not finite"]


def test_users_handlers_get_every_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), collected(prints=False) as messages:
        logging.getLogger("rlcli.monitor").info("a note")
    assert messages == ["a note"]
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("rlcli.monitor", "a note")
    ]
