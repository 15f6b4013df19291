"""How nodes meet over loopback, and everything that can come instead of a node."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
from launched import free_port

from rlcli.doctor import nodes
from rlcli.doctor.finding import Finding
from rlcli.doctor.nodes import Hello, Meeting, gather, read_meeting, verdict
from rlcli.errors import ConfigError

ENDLESS_S = 3600.0


def meeting(rank: int, nnodes: int, port: int, timeout_s: float = ENDLESS_S) -> Meeting:
    return Meeting(rank=rank, nnodes=nnodes, host="127.0.0.1", port=port, timeout_s=timeout_s)


def ignore(text: str) -> None:
    pass


def findings_of(*meetings: Meeting) -> list[list[Finding]]:
    """What each node is told."""
    with ThreadPoolExecutor(len(meetings)) as pool:
        met = list(pool.map(lambda each: gather(each, ignore), meetings))
    return [each.findings for each in met]


def hello(rank: int, nnodes: int, **versions: str) -> Hello:
    return Hello(
        rank=rank,
        nnodes=nnodes,
        host="a",
        address="10.0.0.1",
        interface="eth0",
        command=nodes.COMMAND,
        versions={"python": "3.11.7", "torch": "2.13.0"} | versions,
    )


def bad(findings: list[Finding]) -> list[str]:
    return [f"{f.name} {f.says}" for f in findings if f.level == "bad"]


def test_three_nodes_come_and_all_hear_the_same_verdict() -> None:
    port = free_port()
    told = findings_of(*(meeting(rank, 3, port) for rank in (2, 0, 1)))
    assert told[0] == told[1] == told[2]
    assert [f.name for f in told[0]] == ["node 0", "node 1", "node 2"]
    assert bad(told[0]) == []
    assert "torch" in told[0][1].says


def test_a_rank_that_came_twice_ends_the_meeting_at_once() -> None:
    port, before_s = free_port(), time.monotonic()
    for told in findings_of(*(meeting(rank, 3, port) for rank in (0, 1, 1))):
        assert len(bad(told)) == 1
        assert bad(told)[0].startswith("node 1 came twice: from ")
    assert time.monotonic() - before_s < 0.1 * ENDLESS_S


def test_versions_that_differ_are_told_by_package() -> None:
    came = [hello(0, 3), hello(1, 3, torch="2.11.0"), hello(2, 3, python="3.99.1")]
    said = bad(verdict(meeting(0, 3, 1), came))
    assert said[0].endswith("3.99 on node 2")
    assert said[1] == "torch 2.13.0 on nodes 0, 2; 2.11.0 on node 1"


def test_another_patch_of_python_is_no_difference() -> None:
    assert bad(verdict(meeting(0, 2, 1), [hello(0, 2), hello(1, 2, python="3.11.9")])) == []


def test_nodes_that_count_differently_are_told_so() -> None:
    port = free_port()
    for told in findings_of(meeting(0, 3, port), meeting(1, 2, port)):
        assert "has NNODES=2, node 0 has NNODES=3" in bad(told)[0]


def test_missing_nodes_are_told_by_number_to_those_who_came() -> None:
    port = free_port()
    for told in findings_of(meeting(0, 4, port, 3.0), meeting(2, 4, port, 3.0)):
        assert [text.split(" did not")[0] for text in bad(told)] == ["node 1", "node 3"]


def test_a_meeting_that_needs_fewer_nodes_does_not_wait_for_all() -> None:
    port = free_port()
    few = {"min_nodes": 2, "last_call_s": 1.0}
    for told in findings_of(*(replace(meeting(rank, 3, port), **few) for rank in (0, 2))):
        assert bad(told) == []
        assert [f.name for f in told] == ["node 0", "node 2"]


def test_node_0_at_a_loopback_address_says_why_nobody_comes() -> None:
    (found,) = [f for f in findings_of(meeting(0, 2, free_port(), 0.1))[0] if f.level == "bad"]
    assert found.cure is not None
    assert "only node 0 itself can reach" in found.cure


def test_waiting_is_told_with_ranks_place_and_seconds() -> None:
    told: list[str] = []
    port = free_port()
    gather(meeting(0, 3, port, 0.1), told.append)
    assert told == [f"waiting for node 1, 2/3 at 127.0.0.1:{port} (0 s)"]


def test_nobody_listening_is_told_as_such() -> None:
    port = free_port()
    told: list[str] = []
    (found,) = gather(meeting(1, 2, port, 0.2), told.append).findings
    assert found.says == (
        f"connection refused, nothing listens at 127.0.0.1:{port}; gave up after 0.2 s"
    )
    assert f"nothing listens at 127.0.0.1:{port}" in told[0]


def test_a_name_that_does_not_resolve_is_told_on_both_sides() -> None:
    for rank in (0, 1):
        nowhere = replace(meeting(rank, 2, 29500, 0.2), host="no-such-host.invalid")
        (found,) = gather(nowhere, ignore).findings
        assert found.level == "bad"
        assert "does not resolve" in found.says


def test_a_network_that_cannot_be_reached_ends_in_time() -> None:
    before_s = time.monotonic()
    (found,) = gather(replace(meeting(1, 2, 29500, 0.2), host="240.0.0.1"), ignore).findings
    assert found.level == "bad"
    assert time.monotonic() - before_s < 60  # Linux tries for two minutes


def test_node_0_elsewhere_than_master_addr_is_refused_at_once() -> None:
    (found,) = gather(replace(meeting(0, 2, 29500), host="192.0.2.1"), ignore).findings
    assert "is no address of this machine" in found.says


def test_a_taken_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (found,) = gather(meeting(0, 2, port), ignore).findings
    assert f"port {port} is taken" in found.says


def test_another_server_at_the_port_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "CONNECT_LIMIT_S", 1.0)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        (found,) = gather(meeting(1, 2, silent.getsockname()[1], 1.0), ignore).findings
    assert "something else than rlcli doctor --nodes listens" in found.says


def test_the_meeting_is_read_from_the_environment() -> None:
    env = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    assert read_meeting(env) == Meeting(rank=1, nnodes=2, host="10.0.0.1", port=29500)
    assert read_meeting(env).timeout_s == 120


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"NNODES": ""}, "NNODES"),
        ({"NNODES": "1"}, "NNODES=1"),
        ({"NNODES": "two"}, "NNODES=two"),
        ({"NODE_RANK": "2"}, "NODE_RANK=2"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999"),
    ],
)
def test_a_meeting_that_cannot_be_is_refused(changes: dict[str, str], named: str) -> None:
    env = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    with pytest.raises(ConfigError, match=named) as caught:
        read_meeting(env | changes)
    assert str(caught.value).count("\n") < 3
