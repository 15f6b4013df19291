"""How ranks find each other: who is let in, who is waited for and for how long."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Client, Connection
from pathlib import Path

import pytest
from supervised import free_port

from rlcli.crew import lines, meet
from rlcli.crew.lines import enter, let_in, named, open_door
from rlcli.errors import LaunchError, RankLostError

ROOT = Path(__file__).resolve().parents[2]
KEY = b"k" * lines.KEY_BYTES
HOSTS = ["127.0.0.1", "::1"]
BIG = 3_000_000
RANK = f"""
import os, time, torch
import rlcli.crew.lines as lines
lines.FIRST_WORD_S = 0.3
from rlcli.place import read_place
from rlcli.crew.lead import Crew
from rlcli.crew.meet import connect, process_group
from rlcli.errors import RankLostError
from rlcli.crew.parcel import pack, receive, send

place = read_place(os.environ)
value = {{
    "long": torch.arange({BIG}).view(-1, 3),
    "turned": torch.arange(6).view(2, 3).T,
    "bool": torch.tensor([True, False, True]),
    "half": torch.tensor(1.5, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
    "learned": torch.ones(2, requires_grad=True),
    "rest": (None, "x" * 100_000, [1.5]),
}}

def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b

told = place.run_dir / "told"

def tell(text):
    print(text, flush=True)
    told.touch()

while place.rank and not told.exists():
    time.sleep(0.01)
with process_group(place, torch.device("cpu"), tell=tell):
    connections = connect(place, tell=tell)
    if place.rank == 0:
        for connection in connections:
            connection.send("hello")
        send(pack(value))
        crew = Crew(connections, place.run_dir / "log")
        try:
            with crew.doing("annotate", parcel=pack(value)):
                pass
        except RankLostError as error:
            print(error)
        crew.dismiss()
    else:
        assert connections[0].recv() == "hello"
        found = receive()
        assert found.keys() == value.keys()
        assert all(same(found[name], value[name]) for name in value)
        print("the same", flush=True)
        os._exit(0)
"""
"""A rank that gets what rank 0 has, once rank 0 has said that it waits, and then is gone."""


def needs(host: str) -> None:
    """Skip where this machine has no such address."""
    try:
        open_door(host, size=1).close()
    except OSError as error:
        pytest.skip(f"{host}: {error.strerror}")


@contextmanager
def guests(address: Sequence[str | int], ranks: Sequence[int]) -> Iterator[dict[int, Connection]]:
    """Ranks that connect, each in a thread."""
    found: dict[int, Connection] = {}

    def come(rank: int) -> None:
        found[rank] = enter(address, KEY, rank=rank, limit_s=60.0)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    yield found
    for thread in threads:
        thread.join()
    for connection in found.values():
        connection.close()


@pytest.mark.parametrize("host", HOSTS)
def test_ranks_come_in_any_order_over_either_protocol(host: str) -> None:
    needs(host)
    with open_door(host, size=4) as door, guests(door.getsockname(), [3, 1, 2]) as found:
        there = let_in(door, KEY, size=4, limit_s=60.0, tell=print)
        for rank, connection in enumerate(there, start=1):
            connection.send(rank)
        assert [found[rank].recv() for rank in (1, 2, 3)] == [1, 2, 3]
    for connection in there:
        connection.close()


def test_a_stranger_is_not_let_in_and_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "GREETING_S", 1)
    with open_door("127.0.0.1", size=2) as door:
        silent = socket.create_connection(door.getsockname())
        wrong = threading.Thread(target=knock, args=(door.getsockname(),))
        wrong.start()
        with closing(silent), guests(door.getsockname(), [1]):
            (connection,) = let_in(door, KEY, size=2, limit_s=60.0, tell=print)
        connection.close()
        wrong.join()


def knock(address: Sequence[str | int]) -> None:
    with pytest.raises(Exception):  # noqa: B017
        Client((str(address[0]), int(address[1])), authkey=secrets.token_bytes(32))


def test_ranks_that_do_not_come_are_named_first_as_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "FIRST_WORD_S", 0.0)
    told: list[str] = []
    with (
        open_door("127.0.0.1", size=4) as door,
        guests(door.getsockname(), [2]),
        pytest.raises(RankLostError, match=r"^ranks 1, 3 did not come within 0\.5 s$"),
    ):
        let_in(door, KEY, size=4, limit_s=0.5, tell=told.append)
    assert told[0] == "waiting for ranks 1, 2, 3 (0 s)"


def test_many_ranks_are_named_in_short() -> None:
    assert named([4]) == "rank 4"
    assert named(range(1, 8)) == "ranks 1, 2, 3, 4, 5, 6, 7"
    assert named(range(511)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 503 more"


def test_a_rank_0_that_has_gone_is_told() -> None:
    with open_door("127.0.0.1", size=1) as door:
        address = door.getsockname()
    with pytest.raises(RankLostError, match=f"rank 0 does not answer at 127.0.0.1:{address[1]}"):
        enter(address, KEY, rank=1, limit_s=60.0)


def test_rank_0_may_listen_later_than_others_ask() -> None:
    with open_door("127.0.0.1", size=1) as door:
        host, port = door.getsockname()
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
    assert meet.own_address(host) == host.replace("localhost", "127.0.0.1")


@pytest.mark.parametrize("host", ["", "::1"])
def test_ranks_meet_and_get_what_rank_0_has_to_the_bit(host: str, tmp_path: Path) -> None:
    """On one machine through a file, on several through MASTER_ADDR."""
    if host:
        needs(host)
    said = run_two(host, tmp_path)
    assert said[1] == "the same\n"
    assert said[0].startswith("waiting for rank 1 (0 s)\n")
    assert said[0].endswith("rank 1 is gone\n")


def run_two(host: str, folder: Path) -> list[str]:
    env = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1" if host else "2", "LOCAL_RANK": "0"}
    env |= {"MASTER_ADDR": host, "MASTER_PORT": str(free_port()), "RLCLI_RUN_DIR": str(folder)}
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
        said = [rank.communicate(timeout=60) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return [out for out, _ in said]
