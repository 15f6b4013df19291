"""How processes meet over loopback, and everything that can come instead of one of them."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from typing import Any

import pytest
from launched import free_port
from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from rlcli.distributed import gather
from rlcli.distributed.gather import Meeting, MeetingError, Member
from rlcli.launcher.rendezvous import gather_nodes
from rlcli.system.finding import Finding

ENDLESS_S = 3600.0


def meeting(number: int, size: int, port: int, limit_s: float = ENDLESS_S, **more: Any) -> Meeting:
    default = {"unit": "node", "host": "127.0.0.1", "least": size}
    place = {"number": number, "size": size, "port": port, "limit_s": limit_s}
    return Meeting(**default | place | more)


def findings_of(*meetings: Meeting) -> list[list[Finding]]:
    """What each node finds."""

    def run(each: Meeting) -> list[Finding]:
        try:
            _, part, members = gather_nodes(each, "rlcli train")
        except MeetingError as error:
            return list(error.findings)
        each.leave(part, len(members))
        return each.compare(members)

    with ThreadPoolExecutor(len(meetings)) as pool:
        return list(pool.map(run, meetings))


def error_of(each: Meeting) -> Finding:
    """The one thing that is wrong."""
    ((found,),) = findings_of(each)
    assert found.level == "bad"
    assert found.cure
    return found


def member(number: int, size: int, **facts: str) -> Member:
    own = {"python": "3.11", "torch": "2.13.0"}
    return Member(number=number, size=size, where="a 10.0.0.1", facts=own | facts)


def bad(findings: list[Finding]) -> list[str]:
    return [f"{f.name} {f.says}" for f in findings if f.level == "bad"]


def test_three_nodes_come_and_all_find_the_same() -> None:
    port = free_port()
    found = findings_of(*(meeting(number, 3, port) for number in (2, 0, 1)))
    assert found[0] == found[1] == found[2]
    assert [f.name for f in found[0]] == ["node 0", "node 1", "node 2"]
    assert bad(found[0]) == []
    assert "torch" in found[0][1].says


def test_a_number_that_came_twice_ends_the_meeting_at_once() -> None:
    port = free_port()
    for found in findings_of(*(meeting(number, 3, port) for number in (0, 1, 1))):
        assert len(bad(found)) == 1
        assert bad(found)[0].startswith("node 1 came twice: from ")


def test_versions_that_differ_are_named_by_package() -> None:
    came = [member(0, 3), member(1, 3, torch="2.11.0"), member(2, 3, python="3.99")]
    assert bad(meeting(0, 3, 1).compare(came)) == [
        "python 3.11 on nodes 0, 1; 3.99 on node 2",
        "torch 2.13.0 on nodes 0, 2; 2.11.0 on node 1",
    ]


def test_nodes_that_count_differently_are_named_at_once() -> None:
    port = free_port()
    for found in findings_of(meeting(0, 3, port), meeting(1, 2, port)):
        assert bad(found) == ["NNODES 3 on node 0; 2 on node 1"]


def test_missing_nodes_are_named_to_those_who_came() -> None:
    port = free_port()
    for found in findings_of(meeting(0, 4, port, 3.0), meeting(2, 4, port, 3.0)):
        assert [text.split(" did not")[0] for text in bad(found)] == ["node 1", "node 3"]


def test_a_meeting_that_needs_fewer_does_not_wait_for_all() -> None:
    port = free_port()
    few = {"least": 2, "last_call_s": 1.0}
    for found in findings_of(*(meeting(number, 3, port, **few) for number in (0, 2))):
        assert bad(found) == []
        assert [f.name for f in found] == ["node 0", "node 2"]


def test_a_rank_that_was_killed_while_it_waited_is_no_member_of_the_next_start() -> None:
    """A launcher's store outlives the ranks."""
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    stores = [TCPStore("localhost", server.port, is_master=False) for _ in range(2)]
    for start in range(2):
        killed = stores[1].add("entries", 1)
        stores[1].set(f"entry/{killed}", json.dumps(["its key", asdict(member(1, 2))]))
        stores[1].add(f"beat/{killed}", 7)

        def meet(number: int, start: int = start) -> tuple[Store, list[Member]]:
            rank = meeting(number, 2, 1, unit="rank")
            return rank.gather(stores[number], member(number, 2), key=f"{start} {number}")

        with ThreadPoolExecutor(2) as pool:
            (zero, found), (one, same) = pool.map(meet, range(2))
        assert [each.number for each in found] == [each.number for each in same] == [0, 1]
        assert not zero.check(["start"])
        zero.set("start", "")
        assert one.check(["start"])


def test_a_loopback_address_is_named_as_the_reason_that_nobody_comes() -> None:
    found = findings_of(meeting(0, 2, free_port(), 0.1))[0]
    (cure,) = [f.cure for f in found if f.level == "bad"]
    assert cure is not None
    assert "only node 0 itself can reach" in cure


def test_waiting_is_reported_with_numbers_place_and_seconds() -> None:
    told: list[str] = []
    port = free_port()
    findings_of(meeting(0, 3, port, 0.1, progress=told.append))
    assert told[0] == f"waiting for nodes 1, 2 at 127.0.0.1:{port} (0 s)"


def test_nobody_listening_is_reported_and_in_the_end_refused() -> None:
    port = free_port()
    told: list[str] = []
    refused = f"connection refused, nothing listens at 127.0.0.1:{port}"
    found = error_of(meeting(1, 2, port, 0.3, progress=told.append))
    assert found.says == f"{refused}; gave up after 0.3 s"
    assert told[0] == f"waiting for node 0 (0 s): {refused}"


def test_number_0_may_listen_later_than_others_connect() -> None:
    port = free_port()
    opened: list[TCPStore] = []
    late = threading.Timer(0.4, lambda: opened.append(meeting(0, 2, port).listen()))
    late.start()
    begun_s = time.monotonic()
    assert meeting(1, 2, port).connect().port == port
    assert time.monotonic() - begun_s >= 0.3
    late.join()


def test_a_network_that_swallows_everything_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog answers no more than a firewall does."""
    monkeypatch.setattr(gather, "UNREACHABLE_S", 0.5)
    monkeypatch.setattr(gather, "TRY_S", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        host, port = full.getsockname()
        with closing(socket.create_connection((host, port))):
            found = error_of(meeting(5, 8, port, unit="rank"))
    assert found.name == "rank 5"
    assert found.says == f"no answer from 127.0.0.1:{port}; gave up after 0.5 s"


@pytest.mark.parametrize("number", [0, 1])
def test_a_name_that_does_not_resolve_is_named_on_both_sides(number: int) -> None:
    found = error_of(meeting(number, 2, free_port(), 0.2, host="no-such-host.invalid"))
    assert "does not resolve" in found.says


def test_a_network_that_cannot_be_reached_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "HANDSHAKE_S", 1.0)  # a proxy may connect, and stay silent
    before_s = time.monotonic()
    error_of(meeting(1, 2, 29500, 0.2, host="240.0.0.1"))
    assert time.monotonic() - before_s < 60  # Linux tries for two minutes


def test_node_0_elsewhere_than_master_addr_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "TRY_S", 1.0)
    found = error_of(meeting(0, 2, free_port(), host="192.0.2.1"))
    assert "MASTER_ADDR=192.0.2.1 is no address of this machine" in found.says


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in error_of(meeting(0, 2, port)).says


def test_another_server_at_the_port_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "HANDSHAKE_S", 1.0)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        found = error_of(meeting(1, 2, silent.getsockname()[1], 1.0))
    assert "something else than rlcli listens" in found.says


def test_an_error_is_two_lines_with_the_first_cure() -> None:
    came = [member(0, 2), member(1, 2, torch="2.11.0", python="3.12", gpu="none")]
    text = str(MeetingError(*meeting(0, 2, 1).compare(came)))
    assert "cannot train together: gpu: not given on node 0; none on node 1; python: " in text
    assert "; and torch.\nWhat to do: use the same gpu on all" in text
