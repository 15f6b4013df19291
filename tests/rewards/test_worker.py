"""Workers whose parent is gone end by themselves and leave nothing in the log."""

from __future__ import annotations

import os
import pickle
import subprocess
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from rlcli.config.rewards import JudgeConfig
from rlcli.rewards.judge.messages import Call, Opening
from rlcli.rewards.judge.templates import load_template
from rlcli.rewards.parent_pipe import ParentGone, ParentPipe
from rlcli.rewards.process import start_worker
from rlcli.rewards.protocol import READY

REWARD = """
import pathlib
import time

def compute_score(solution_str):
    pathlib.Path(solution_str).touch()
    time.sleep(0.5)
    return 1.0
"""
HALF_A_MESSAGE = (100).to_bytes(4, "big") + b"half"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "reward.log"


@pytest.fixture
def start(user_file: Any, log: Path) -> Any:
    """start(source) -> (process, parent's end) of a worker that scores with it."""

    def run(source: str = REWARD) -> tuple[subprocess.Popen[bytes], Connection]:
        words = (str(os.getpid()), user_file(source), "10.0")
        return start_worker("rlcli.rewards.worker", *words, log=log)

    return run


def score(connection: Connection, marker: Path) -> None:
    """Send a call that touches `marker` and lasts half a second more."""
    call = {
        "data_source": "q",
        "solution_str": str(marker),
        "ground_truth": "1",
        "extra_info": {},
        "messages": [],
        "columns": {},
        "token_ids": [],
    }
    connection.send_bytes(pickle.dumps(call))


def check_quiet(process: subprocess.Popen[bytes], log: Path) -> None:
    """It exits by itself, and its log is empty."""
    assert process.wait(timeout=60.0) == 0
    assert log.read_text() == ""


@pytest.mark.parametrize("source", [REWARD, "an error of syntax"])
def test_before_the_reward_is_loaded(start: Any, log: Path, source: str) -> None:
    process, connection = start(source)
    connection.close()
    check_quiet(process, log)


def test_between_two_calls(start: Any, log: Path) -> None:
    process, connection = start()
    assert connection.recv_bytes().startswith(READY)
    connection.close()
    check_quiet(process, log)


def test_during_a_call(start: Any, log: Path, tmp_path: Path) -> None:
    process, connection = start()
    assert connection.recv_bytes().startswith(READY)
    score(connection, tmp_path / "begun")
    wait_until((tmp_path / "begun").exists, 60.0)
    connection.close()
    check_quiet(process, log)


def test_with_replies_that_nobody_has_read(start: Any, log: Path, tmp_path: Path) -> None:
    process, connection = start()
    score(connection, tmp_path / "first")
    score(connection, tmp_path / "second")
    wait_until((tmp_path / "second").exists, 60.0)
    connection.close()
    check_quiet(process, log)


def test_in_the_middle_of_a_call_that_is_sent(start: Any, log: Path) -> None:
    process, connection = start()
    assert connection.recv_bytes().startswith(READY)
    os.write(connection.fileno(), HALF_A_MESSAGE)
    connection.close()
    check_quiet(process, log)


@pytest.mark.parametrize("sent", [b"", HALF_A_MESSAGE])
def test_a_judge_before_it_knows_how_to_judge(log: Path, sent: bytes) -> None:
    process, connection = start_worker("rlcli.rewards.judge.process_worker", log=log)
    os.write(connection.fileno(), sent)
    connection.close()
    check_quiet(process, log)


def test_a_judge_that_was_asked(log: Path, tmp_path: Path) -> None:
    config = JudgeConfig(enabled=True, provider="openai", model="m", base_url="http://127.0.0.1:9")
    template, _ = load_template(config, lang="en")
    opening = Opening(
        config=config,
        template=template,
        env={"OPENAI_API_KEY": "sk-0123456789"},
        lang="en",
        run_dir=tmp_path,
        state={},
    )
    process, connection = start_worker("rlcli.rewards.judge.process_worker", log=log)
    connection.send(opening)
    for number in range(3):
        connection.send(Call(number=number, method="metrics"))
    connection.close()
    check_quiet(process, log)


def test_another_fault_of_the_pipe_is_an_error() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    only_writes = ParentPipe(theirs)
    with pytest.raises(OSError, match="Bad file descriptor"):
        only_writes.receive()
    with pytest.raises(ParentGone):
        only_writes.send(b"")
