"""Three real ranks: who is waited for is said while it lasts, and nobody waits for ever."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launched import ranks_of

ROOT = Path(__file__).resolve().parents[2]
SIZE = 3
RANK = """
import os, signal, sys, threading, time, torch
import torch.distributed as dist
from pathlib import Path
from datetime import timedelta
from torch.distributed.distributed_c10d import _set_pg_timeout
from rlcli.distributed.live_ranks import LiveRanks
from rlcli.distributed.process_group import process_group
from rlcli.errors import RankError, RankLostError
from rlcli.distributed.rank_env import read_rank
from rlcli.terminal.logs import Shown, show_with

me, run_dir = read_rank(os.environ), Path(os.environ["TEST_RUN_DIR"])
BEAT_S, FIRST_WARNING_S, PATIENCE_S = 0.1, 1.0, 1.5
CASES = {
    "short": [{}] * 50,
    "even": [{0: 0.1, 1: 0.1, 2: 0.1}] * 14,
    "rank 1": [{1: 0.2}, {1: 1.9}, {2: 0.1}],
    "rank 0": [{}, {0: 1.9}],
    "far": [{1: 2.9}],
    "stopped": [{2: 0.4}],
    "broken": [{1: 0.3}, {1: "no room left"}],
}
LOST = {
    "slow": [{1: PATIENCE_S + 0.5}],
    "update": [{}, {2: "stop"}],
    "gather": [{}, {2: "stop"}],
}

def work(case, part):
    todo = part.get(me.rank, 0)
    if todo == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif isinstance(todo, str):
        raise ValueError(todo)
    else:
        time.sleep(todo)
    if case in ("far", "slow", "gather"):
        assert ranks.gather(me.rank) == [0, 1, 2]
    else:
        total = torch.tensor(float(me.rank))
        dist.all_reduce(total)
        assert total == 3

def take(cases):
    for case, parts in cases.items():
        show_with(Shown(lambda note, level, case=case: tell(case, note)))
        if case == "stopped" and me.rank == 0:
            threading.Timer(0.2, os.kill, (pids[1], signal.SIGSTOP)).start()
        begun = time.monotonic()
        try:
            with ranks.explained(), ranks.doing("update"):
                for part in parts:
                    work(case, part)
            print(f"{case}: ended", flush=True)
        except (RankError, RankLostError) as error:
            seconds = time.monotonic() - begun
            print(f"{case}: {type(error).__name__}: {error}, {seconds:.0f} s", flush=True)
            return

def tell(case, note):
    print(f"{case}: {note}", flush=True)
    if "silent" in note and case == "stopped":
        os.kill(pids[1], signal.SIGCONT)

with process_group(me, is_cuda=False, progress=print) as meeting:
    limits = {"first_warning_s": FIRST_WARNING_S, "beat_s": BEAT_S}
    name, *lost = sys.argv[1:]
    if lost:
        limits["patience_s"] = PATIENCE_S
    ranks = LiveRanks(me, meeting.store, run_dir, **limits)
    pids = ranks.gather(os.getpid())
    if lost:
        _set_pg_timeout(timedelta(seconds=PATIENCE_S))
    try:
        take({case: LOST[case] for case in lost} if lost else CASES)
        if me.rank == 0:
            time.sleep(0.5)
    finally:
        if me.rank or not lost:
            os._exit(0)
        ranks.close()  # and ends by itself, though another rank is stopped
"""
"""By case: what each rank does before each exchange or collective, for so many seconds or until it
fails. What comes after a case that failed is not done."""


def said(folder: Path, *words: str) -> dict[str, list[str]]:
    """What rank 0 says, by case."""
    command = ["-c", RANK, "rank", *words]
    with ranks_of(SIZE, command, TEST_RUN_DIR=str(folder)) as ranks:
        output = ranks[0].communicate(timeout=600)[0]
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        case, _, note = line.partition(": ")
        found.setdefault(case, []).append(note)
    return found


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What rank 0 said while all came through, and of one that failed."""
    return said(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", ["short", "even"])
def test_nothing_is_said_while_all_go_on(case: str, notes: dict[str, list[str]]) -> None:
    """Neither of many short parts nor of some that last longer than the first word takes."""
    assert notes[case] == ["ended"], notes


@pytest.mark.parametrize(
    ("case", "late"), [("rank 0", "rank 0"), ("rank 1", "rank 1"), ("far", "rank 1")]
)
def test_who_is_late_is_named(case: str, late: str, notes: dict[str, list[str]]) -> None:
    """For a collective, and for an exchange, which ranks may come to as far apart as they like."""
    first, *_, last = notes[case]
    assert re.fullmatch(rf"{late} in update for [1-4] s, others waiting", first), notes
    assert last == "ended"


def test_a_stopped_rank_is_named_and_goes_on(notes: dict[str, list[str]]) -> None:
    """It is stopped inside the collective, no less far than the others."""
    first, last = notes["stopped"]
    assert re.fullmatch(r"rank 1 in update for \d+ s, silent for [123] s", first), notes
    assert last == "ended"


def test_the_error_of_the_rank_that_failed_first_is_told(notes: dict[str, list[str]]) -> None:
    """Not that of another, which lost contact with it."""
    told = r"RankError: rank 1 failed: ValueError: no room left \(<string>:\d+\), [0-9] s"
    assert re.fullmatch(told, notes["broken"][-1]), notes


@pytest.mark.parametrize("where", ["update", "gather"])
def test_a_silent_rank_is_given_up_and_a_slow_one_is_not(where: str, tmp_path: Path) -> None:
    """In an exchange, and in a collective that ends in torch's own words, some without gloo."""
    notes = said(tmp_path, "slow", where)
    assert notes["slow"][-1] == "ended", notes
    lost = r"RankLostError: rank 2 did not answer in update, \d+ s"
    assert any(re.fullmatch(lost, note) for note in notes[where]), notes
    stacks = "".join(file.read_text() for file in tmp_path.rglob("*.log"))
    assert "Timeout (0:00:01.2" in stacks
    assert "in work" in stacks
