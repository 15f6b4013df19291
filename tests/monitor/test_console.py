"""The lines of the guides, as they print them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from rich.console import Console
from waiting import wait_until

from rlcli.monitor.console import RunConsole, duration, epoch_line, sparkline, step_lines
from rlcli.system.signals import StopRequest


def test_a_step_prints_the_guides_lines() -> None:
    record = {
        "policy_loss": 0.234, "kl_divergence": 0.012, "reward_mean": 0.456,
        "batch/samples": 85.0, "batch/tokens": 23847.0,
    }  # fmt: skip
    assert step_lines(1, 1, record) == [
        "Epoch 1, Step 1: Dynamic Batch: 85 samples (23847 tokens)",
        "Actor Loss: 0.234, KL: 0.012, Reward: 0.456",
    ]


def test_of_several_ranks_the_batch_is_rank_0s() -> None:
    record = {"batch/samples": 85.0, "batch/tokens": 23847.0, "reward_mean": 0.456}
    assert step_lines(2, 1, record, num_ranks=2) == [
        "Epoch 1, Step 2: Dynamic Batch: 85 samples (23847 tokens) on rank 0",
        "Reward: 0.456",
    ]


def test_a_term_the_run_does_not_have_is_left_out() -> None:
    assert step_lines(1, 1, {"policy_loss": 0.189, "reward_mean": 0.512}) == [
        "Actor Loss: 0.189, Reward: 0.512"
    ]


def test_an_epoch_prints_its_bar() -> None:
    bar = "\u2588" * 10
    expected = f"Epoch 1/15: 100%|{bar}| 1024/1024 [05:23<00:00, 3.17it/s]"
    assert epoch_line(1, 15, 1024, 1024, 323.0) == expected


def test_durations_and_sparklines() -> None:
    assert duration(59.9) == "00:59"
    assert duration(3723) == "1:02:03"
    assert sparkline([0.0, 1.0]) == "\u2581\u2588"
    assert sparkline([2.0, 2.0]) == "\u2581\u2581"


def test_ctrl_c_is_acknowledged_inside_the_live_panel(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    console, stop = RunConsole(tmp_path / "log", num_steps=9), StopRequest()
    console.console = Console(force_terminal=True, width=80)
    stop.acknowledged_by = console.show_stopping
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stop.install()
        console.start(0)
        os.kill(os.getpid(), signal.SIGINT)
        shown: list[str] = []
        wait_until(lambda: shown.append(capfd.readouterr().out) or "Ctrl-C" in "".join(shown))
        console.stop()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        console.close()
    assert stop.signal == signal.SIGINT
    assert capfd.readouterr().err == ""  # a line from outside would tear the panel
