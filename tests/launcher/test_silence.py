"""A rank 0 that is stopped or hangs, and one that a signal meets when it has ended the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from launched import ROOT, Lead, is_alive
from waiting import wait_until

from rlcli.run_dir.heartbeat import SIGN, Silence, clear_heartbeat

pytestmark = pytest.mark.slow  # threads of the tests wait for processes

HANGS = """
if relaunches: sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
if not rank:
    write_status("STATE", "REASON")
    write("ready")
    start_heartbeat()
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(60)
"""
SHORT: dict[str, Any] = {"sign_s": 0.3, "stuck_s": 1.5, "grace_s": 0.8, "leave_s": 0.1}


@pytest.fixture
def lead(tmp_path: Path) -> Lead:
    return Lead(tmp_path, preempt_exit_code=85)


def hangs(state: str = "running", reason: str = "") -> str:
    return HANGS.replace("STATE", state).replace("REASON", reason)


def signal_once_ready(lead: Lead, number: int) -> None:
    def send() -> None:
        wait_until((lead.run_dir / "ready").exists)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def seconds_told(said: list[str]) -> list[float]:
    begin = "rank 0 has given no sign for "
    assert all(text.startswith(begin) for text in said), said
    return [float(text.removeprefix(begin).split()[0]) for text in said]


def test_a_rank_0_that_is_stopped_is_told_and_then_killed_and_started_again(lead: Lead) -> None:
    assert lead(hangs(), **SHORT) == 0
    assert lead.told[0].endswith(" s")
    assert lead.told[-1].endswith("; starting again from the beginning (1 of 3 in 10 minutes)")
    assert 2 < len(lead.told) < 6  # after 0.3, 0.6 and 1.2 s, and at the end
    assert seconds_told(lead.told) == sorted(seconds_told(lead.told))
    assert not any(is_alive(lead.pid(rank)) for rank in (0, 1))
    assert not (lead.run_dir / SIGN).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1), (signal.SIGINT, 130)])
def test_a_stopped_rank_0_that_was_asked_to_stop_is_killed_sooner(
    lead: Lead, number: int, code: int
) -> None:
    signal_once_ready(lead, number)
    assert lead(hangs(), **{**SHORT, "stuck_s": 60.0}) == code
    assert lead.told[-1].endswith("; not started again, as it was asked to stop")


def test_a_rank_0_that_lives_may_save_as_long_as_it_takes(lead: Lead) -> None:
    script = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if rank: time.sleep(60)\nwrite_status('running')\nwrite('ready')\n"
        "for _ in range(4): start_heartbeat()\nsys.exit(9)\n"
    )
    signal_once_ready(lead, signal.SIGTERM)
    limits: dict[str, Any] = {"sign_s": 1.0, "grace_s": 1.2, "stuck_s": 1.2, "leave_s": 0.1}
    assert lead(script, **limits) == 9
    assert lead.told == []


def test_a_rank_0_that_never_gave_a_sign_is_waited_for(lead: Lead) -> None:
    assert lead("time.sleep(1)\n", **SHORT) == 0
    assert lead.told == []


ENDS = [
    ("finished", "", 0),
    ("preempted", "SIGTERM", 85),
    ("preempted", "Ctrl-C", 130),
    ("paused", "no judge", 75),
    ("failed", "no disk", 1),
]


@pytest.mark.parametrize(("state", "reason", "code"), ENDS)
def test_a_rank_0_that_hangs_after_the_end_leaves_the_code_of_that_end(
    lead: Lead, state: str, reason: str, code: int
) -> None:
    assert lead(hangs(state, reason), **{**SHORT, "stuck_s": 60.0}) == code
    assert f'"{state}"' in (lead.run_dir / "status.json").read_text()
    assert "again" not in lead.told[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGABRT])
@pytest.mark.parametrize(("state", "reason", "code"), ENDS)
def test_a_signal_that_kills_rank_0_after_the_end_changes_no_exit_code(
    lead: Lead, state: str, reason: str, code: int, number: int
) -> None:
    script = f"if rank: time.sleep(60)\nwrite_status({state!r}, {reason!r})\n"
    if number == signal.SIGTERM:
        script += "write('ready')\ntime.sleep(60)\n"
        signal_once_ready(lead, number)
    else:
        script += "os.abort()\n"
    assert lead(script, leave_s=0.1, stop_s=0.1) == code
    assert lead.told == []


def test_an_error_that_all_ranks_share_is_told_by_rank_0_alone(lead: Lead) -> None:
    script = "print('the same', flush=True)\nif not rank: await_file('pid_1_0')\nsys.exit(1)\n"
    assert lead(script) == 1
    assert lead.told == []


def test_a_machine_that_was_frozen_has_not_been_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    silence = Silence(tmp_path, look_every_s=1.0)
    found: list[float] = []
    for now_s in (1.0, 2.0, 2.5, 3.0, 1000.0):
        if now_s == 1.0:
            (tmp_path / SIGN).touch()
        silence.look()
        found.append(silence.seconds)
    assert found == [0.0, 1.0, 1.0, 2.0, 4.0]
    os.utime(tmp_path / SIGN, (9, 9))
    now_s = 2000.0
    silence.look()
    assert silence.seconds == 0.0


def test_signs_are_given_until_the_process_stops(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from rlcli.run_dir.heartbeat import start_heartbeat\n"
        "start_heartbeat(Path(sys.argv[1]), every_s=0.05)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    try:
        silence = Silence(tmp_path, look_every_s=0.1)
        wait_until((tmp_path / SIGN).exists)
        for _ in range(5):  # each sign ends the silence since the one before
            first = (tmp_path / SIGN).stat().st_mtime_ns
            wait_until(lambda since=first: (tmp_path / SIGN).stat().st_mtime_ns > since)
            wait_until(lambda: silence.look() is None and silence.seconds == 0.0)
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: silence.look() is None and silence.seconds > 0.6)
    finally:
        process.kill()
        process.wait()
    clear_heartbeat(tmp_path)
    assert not list(tmp_path.iterdir())
