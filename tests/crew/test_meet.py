"""How ranks find each other, who is waited for and for how long, and what they exchange."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from launched import free_port

from rlcli.crew import lines, meet
from rlcli.crew.lines import Missing, named
from rlcli.doctor.network import own_address
from rlcli.errors import LaunchError, RankLostError

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ["127.0.0.1", "::1"]
BIG = 3_000_000
RANK = f"""
import os, time
from pathlib import Path
import rlcli.crew.lines as lines
lines.FIRST_WORD_S = 0.3
from rlcli.rank_env import read_rank
from rlcli.crew.live_ranks import LiveRanks
from rlcli.crew.meet import process_group
from rlcli.errors import RankLostError

me, run_dir = read_rank(os.environ), Path(os.environ["TEST_RUN_DIR"])
told = run_dir / "told"

def tell(text):
    print(text, flush=True)
    told.touch()

while me.rank and not told.exists():
    time.sleep(0.01)
with process_group(me, is_cuda=False, tell=tell) as meeting:
    ranks = LiveRanks(me, meeting.store, run_dir)
    for length in (0, 1, 200, 241, 300, {BIG}):
        value = bytes([me.rank + 1]) * length
        assert ranks.gather((me.rank, value)) == [(r, bytes([r + 1]) * length) for r in (0, 1)]
        assert ranks.first(value) == bytes([1]) * length
        uneven = value * (me.rank + 1)
        found = [bytes([1]) * length, bytes([2]) * 2 * length]
        assert ranks.gather_bytes(uneven) == (found if me.rank == 0 else [])
    print("the same", flush=True)
    if me.rank:
        os._exit(0)
    try:
        with ranks.explained():
            ranks.gather(None)
    except RankLostError as error:
        print(error)
    ranks.close()
"""
"""A rank that exchanges values with rank 0, and then is gone."""


def needs(host: str) -> None:
    """Skip where this machine has no such address."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, 0), family=family).close()
    except OSError as error:
        pytest.skip(f"{host}: {error.strerror}")


def test_ranks_that_do_not_come_are_named_first_as_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "FIRST_WORD_S", 0.0)
    told: list[str] = []
    missing = Missing(told.append, limit_s=0.2)
    missing.look([1, 3])
    time.sleep(0.25)
    with pytest.raises(RankLostError, match=r"^ranks 1, 3 did not come within 0\.2 s$"):
        missing.look([1, 3])
    assert told == ["waiting for ranks 1, 3 (0 s)"]


def test_many_ranks_are_named_in_short() -> None:
    assert named([4]) == "rank 4"
    assert named(range(1, 8)) == "ranks 1, 2, 3, 4, 5, 6, 7"
    assert named(range(511)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 503 more"


def test_rank_0_may_listen_later_than_others_ask() -> None:
    host, port = "127.0.0.1", free_port()
    opened: list[socket.socket] = []
    later = threading.Timer(0.4, lambda: opened.append(socket.create_server((host, port))))
    later.start()
    begun = time.monotonic()
    meet.await_listener(host, port, rank=1)
    assert time.monotonic() - begun >= 0.3
    later.join()
    opened[0].close()


def test_a_network_that_swallows_everything_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog answers no more than a firewall does."""
    monkeypatch.setattr(meet, "MEETING_S", 0.5)
    monkeypatch.setattr(meet, "TRY_S", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        host, port = full.getsockname()
        with closing(socket.create_connection((host, port))), pytest.raises(LaunchError) as caught:
            meet.await_listener(host, port, rank=5)
    said = str(caught.value)
    assert said.startswith(
        f"rank 5 cannot speak with all other ranks: no answer from 127.0.0.1:{port}"
    )
    assert "Open all TCP ports between the nodes" in said
    assert said.count("\n") < 3


@pytest.mark.parametrize("host", [*HOSTS, "localhost"])
def test_the_own_address_is_of_the_protocol_that_leads_there(host: str) -> None:
    needs(host)
    assert own_address(host) == host.replace("localhost", "127.0.0.1")


@pytest.mark.parametrize("host", ["", "::1"])
def test_ranks_meet_and_exchange_values_of_any_size(host: str, tmp_path: Path) -> None:
    """On one machine through a file, on several through MASTER_ADDR."""
    if host:
        needs(host)
    said = run_two(host, tmp_path)
    assert said[1] == "the same\n"
    assert said[0].startswith("waiting for rank 1 (0 s)\n")
    assert said[0].endswith("the same\nrank 1 is gone\n")


def run_two(host: str, folder: Path) -> list[str]:
    env = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1" if host else "2", "LOCAL_RANK": "0"}
    env |= {"MASTER_ADDR": host, "MASTER_PORT": str(free_port()), "TEST_RUN_DIR": str(folder)}
    env |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={**os.environ, **env, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return [out for out, _ in said]
