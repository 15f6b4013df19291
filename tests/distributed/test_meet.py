"""How ranks connect, which are waited for, and what they exchange."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launched import free_port

from rlcli.distributed.lines import named
from rlcli.system.network import own_address

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ["127.0.0.1", "::1"]
BIG = 3_000_000
RANK = f"""
import os, time
from pathlib import Path
import rlcli.distributed.process_group as meet
meet.QUIET_S = 0.3
from rlcli.distributed.rank_env import read_rank
from rlcli.distributed.live_ranks import LiveRanks
from rlcli.distributed.process_group import process_group
from rlcli.errors import RankLostError

me, run_dir = read_rank(os.environ), Path(os.environ["TEST_RUN_DIR"])
told = run_dir / "told"

def tell(text):
    print(text, flush=True)
    told.touch()

while me.rank and not told.exists():
    time.sleep(0.01)
with process_group(me, is_cuda=False, progress=tell) as meeting:
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


def test_many_ranks_are_named_in_short() -> None:
    assert named([4]) == "rank 4"
    assert named(range(1, 8)) == "ranks 1, 2, 3, 4, 5, 6, 7"
    assert named(range(511)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 503 more"


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
    assert re.match(r"waiting for rank 1 at \S+:[0-9]+ \(0 s\)\n", said[0])
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
