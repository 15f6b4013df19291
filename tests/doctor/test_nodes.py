"""The handshake of nodes over loopback, and everything that can come instead of a node."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcli.doctor.finding import Finding
from rlcli.doctor.nodes import Meeting, meet, node0, others, read_meeting
from rlcli.doctor.nodes.meeting import Hello, own_hello
from rlcli.doctor.nodes.node0 import receive_nodes
from rlcli.doctor.nodes.others import join_node_0
from rlcli.doctor.nodes.wire import HELLO_LIMIT, MAGIC, Lines, StrangerError, line, plain
from rlcli.errors import ConfigError

ENDLESS_S = 3600.0


class Clock:
    """The time of node 0, which goes by when the test says so; and what node 0 says of it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.told: list[str] = []

    def monotonic(self) -> float:
        return self.now_s

    def pass_until(self, words: str, *, is_over: bool = True) -> None:
        """Let time go by until node 0 waits for those; then let it be over."""
        end = time.monotonic() + 60
        while not (self.told and f"waiting for node {words}/" in self.told[-1]):
            assert time.monotonic() < end, self.told
            self.now_s += node0.BEAT_S
            time.sleep(0.02)
        self.now_s += ENDLESS_S if is_over else 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(node0, "time", made)
    monkeypatch.setattr(node0, "SILENCE_LIMIT_S", ENDLESS_S)
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def meeting(rank: int, nnodes: int, port: int, timeout_s: float = ENDLESS_S) -> Meeting:
    return Meeting(rank=rank, nnodes=nnodes, host="127.0.0.1", port=port, timeout_s=timeout_s)


def ignore(text: str) -> None:
    pass


def hold(*hellos: Hello, port: int) -> list[list[Finding]]:
    """The verdict that each node ends with; the first hello is node 0's."""

    def talk(hello: Hello) -> list[Finding]:
        here = meeting(hello.rank, hello.nnodes, port)
        return (receive_nodes if hello is hellos[0] else join_node_0)(here, hello, ignore)

    with ThreadPoolExecutor(len(hellos)) as pool:
        return list(pool.map(talk, hellos))


def hellos(*ranks: int, nnodes: int) -> list[Hello]:
    return [own_hello(meeting(rank, nnodes, 1)) for rank in ranks]


def bad(findings: list[Finding]) -> list[str]:
    return [f"{f.name} {f.says}" for f in findings if f.level == "bad"]


def test_three_nodes_come_and_all_hear_the_same_verdict() -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        verdicts = list(pool.map(lambda r: meet(meeting(r, 3, port), tell=ignore), (2, 0, 1)))
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert [f.name for f in verdicts[0]] == ["node 0", "node 1", "node 2"]
    assert bad(verdicts[0]) == []
    assert "torch" in verdicts[0][1].says


def test_a_rank_that_came_twice_ends_the_meeting_at_once() -> None:
    before_s = time.monotonic()
    verdicts = hold(*hellos(0, 1, 1, nnodes=3), port=free_port())
    assert time.monotonic() - before_s < 0.1 * ENDLESS_S
    for verdict in verdicts:
        assert len(bad(verdict)) == 1
        assert bad(verdict)[0].startswith("node 1 came twice: from ")


def test_versions_that_differ_are_told_by_package() -> None:
    zero, one, two = hellos(0, 1, 2, nnodes=3)
    one = replace(one, versions=one.versions | {"torch": "2.11.0"})
    two = replace(two, versions=two.versions | {"python": "3.99.1"})
    for verdict in hold(zero, one, two, port=free_port()):
        said = bad(verdict)
        assert len(said) == 2
        assert "torch" in said[1]
        assert "2.11.0 on node 1" in said[1]
        assert said[0].endswith("3.99 on node 2")


def test_another_patch_of_python_is_no_difference() -> None:
    zero, one = (
        replace(hello, versions={"python": version})
        for hello, version in zip(hellos(0, 1, nnodes=2), ("3.11.7", "3.11.9"), strict=True)
    )
    assert bad(hold(zero, one, port=free_port())[0]) == []


def test_nodes_that_count_differently_are_told_so() -> None:
    (zero,), (_, one) = hellos(0, nnodes=3), hellos(0, 1, nnodes=2)
    for verdict in hold(zero, one, port=free_port()):
        assert "has NNODES=2, node 0 has NNODES=3" in bad(verdict)[0]


def test_missing_nodes_are_told_by_number_to_those_who_came(clock: Clock) -> None:
    port = free_port()
    zero, two = hellos(0, 2, nnodes=4)
    with ThreadPoolExecutor(2) as pool:
        verdicts = [
            pool.submit(receive_nodes, meeting(0, 4, port), zero, clock.told.append),
            pool.submit(join_node_0, meeting(2, 4, port), two, ignore),
        ]
        clock.pass_until("1, 3")
    for verdict in (future.result() for future in verdicts):
        assert [text.split(" did not")[0] for text in bad(verdict)] == ["node 1", "node 3"]


def test_node_0_at_a_loopback_address_says_why_nobody_comes() -> None:
    (found,) = [
        f for f in receive_nodes(meeting(0, 2, free_port(), 0.1), *hellos(0, nnodes=2), ignore)
        if f.level == "bad"
    ]  # fmt: skip
    assert found.cure is not None
    assert "only node 0 itself can reach" in found.cure


def test_a_node_that_left_may_come_again() -> None:
    port = free_port()
    zero, one = hellos(0, 1, nnodes=3)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(receive_nodes, meeting(0, 3, port), zero, ignore)
        with connect(port) as connection:
            connection.sendall(line(one.message()))
            assert connection.recv(1000).startswith(MAGIC)
        later = [
            pool.submit(join_node_0, meeting(h.rank, 3, port), h, ignore)
            for h in hellos(1, 2, nnodes=3)
        ]
        assert bad(first.result()) == []
        assert all(bad(answer.result()) == [] for answer in later)


def test_a_node_that_came_and_left_is_not_called_absent(clock: Clock) -> None:
    port = free_port()
    zero, one = hellos(0, 1, nnodes=3)
    with ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(receive_nodes, meeting(0, 3, port), zero, clock.told.append)
        with connect(port) as connection:
            connection.sendall(line(one.message()))
            clock.pass_until("2", is_over=False)
            assert connection.recv(1000).startswith(MAGIC)
        clock.pass_until("1, 2")
        said = bad(verdict.result())
    assert said[0].startswith("node 1 came from ")
    assert said[1].startswith("node 2 did not come")


def test_waiting_is_told_with_ranks_place_and_seconds() -> None:
    told: list[str] = []
    port = free_port()
    receive_nodes(meeting(0, 3, port, 0.1), *hellos(0, nnodes=3), told.append)
    assert told == [f"waiting for node 1, 2/3 at 127.0.0.1:{port} (0 s)"]


def test_nobody_listening_is_told_as_such() -> None:
    port = free_port()
    told: list[str] = []
    (found,) = join_node_0(meeting(1, 2, port, 0.2), *hellos(1, nnodes=2), told.append)
    assert found.says == (
        f"connection refused, nothing listens at 127.0.0.1:{port}; gave up after 0.2 s"
    )
    assert f"nothing listens at 127.0.0.1:{port}" in told[0]


def test_a_name_that_does_not_resolve_is_told_on_both_sides() -> None:
    nowhere = replace(meeting(1, 2, 29500, 0.2), host="no-such-host.invalid")
    for talk in (receive_nodes, join_node_0):
        (found,) = talk(nowhere, *hellos(1, nnodes=2), ignore)
        assert found.level == "bad"
        assert "does not resolve" in found.says


def test_a_network_that_cannot_be_reached_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "CONNECT_LIMIT_S", ENDLESS_S)
    before_s = time.monotonic()
    nowhere = replace(meeting(1, 2, 29500, 0.2), host="240.0.0.1")
    (found,) = join_node_0(nowhere, *hellos(1, nnodes=2), ignore)
    assert found.level == "bad"
    assert time.monotonic() - before_s < 60  # Linux tries for two minutes


def test_node_0_elsewhere_than_master_addr_is_refused_at_once() -> None:
    elsewhere = replace(meeting(0, 2, 29500), host="192.0.2.1")
    (found,) = receive_nodes(elsewhere, *hellos(0, nnodes=2), ignore)
    assert "is no address of this machine" in found.says


def test_a_taken_port_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (found,) = receive_nodes(meeting(0, 2, port), *hellos(0, nnodes=2), ignore)
    assert f"port {port} is taken" in found.says


TOLD = {
    "rank": 1, "nnodes": 2, "host": "a", "versions": {}, "command": "c", "facts": {},
    "interface": "",
}  # fmt: skip
GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    MAGIC + b"{not json}\n",
    MAGIC + b"[1]\n",
    MAGIC + b"[" * 3000 + b"\n",
    MAGIC + b"x" * (2 * HELLO_LIMIT),
    line(TOLD | {"rank": True}),
    line(TOLD | {"host": 7}),
    line(TOLD | {"versions": ["torch"]}),
    line(TOLD | {"facts": {"train.lr": 1}}),
]


def connect(port: int) -> socket.socket:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.02)
    raise AssertionError("node 0 does not listen")


def ended(connection: socket.socket) -> bool:
    """Whether the other side ends the connection within a minute, without a word."""
    connection.settimeout(60.0)
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def test_strangers_are_sent_away_and_keep_nobody_from_meeting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node0, "SILENCE_LIMIT_S", ENDLESS_S)
    port = free_port()
    zero, one = hellos(0, 1, nnodes=2)
    with ThreadPoolExecutor(2) as pool:
        verdict: Future[list[Finding]] = pool.submit(
            receive_nodes, meeting(0, 2, port), zero, ignore
        )
        with connect(port):  # says nothing, and stays
            for words in GARBAGE:
                with connect(port) as stranger:
                    with suppress(OSError):
                        stranger.sendall(words)
                    assert ended(stranger), words[:40]
            assert bad(join_node_0(meeting(1, 2, port), one, ignore)) == []
        assert bad(verdict.result()) == []
    assert verdict.result()[-1].says.startswith(f"{len(GARBAGE)} connections")


def test_a_silent_stranger_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node0, "SILENCE_LIMIT_S", 0.1)
    port = free_port()
    zero, one = hellos(0, 1, nnodes=2)
    with ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(receive_nodes, meeting(0, 2, port), zero, ignore)
        with connect(port) as stranger:
            assert ended(stranger)
        assert bad(join_node_0(meeting(1, 2, port), one, ignore)) == []
        assert verdict.result()[-1].name == "strangers"


@contextmanager
def server_that_says(words: bytes) -> Iterator[int]:
    """The port of a server that answers every connection with `words` and stays open."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        held: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    held.append(connection)
                    connection.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in held:
                connection.close()


@pytest.mark.parametrize(
    "words", [b"HTTP/1.1 400 Bad Request\r\n", b"", line({"verdict": []}), line({"waiting": "x"})]
)
def test_another_server_at_the_port_is_recognised(
    words: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "SILENCE_LIMIT_S", 0.1)
    with server_that_says(words) as port:
        (found,) = join_node_0(meeting(1, 2, port), *hellos(1, nnodes=2), ignore)
    assert found.says.startswith("something else than rlcli doctor --nodes listens at")


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_message_or_a_stranger(data: bytes, has_magic: bool) -> None:
    with suppress(StrangerError):
        for message in Lines(100).feed(MAGIC + data if has_magic else data):
            assert isinstance(message, dict)


@given(st.lists(st.integers(1, 20), min_size=1))
def test_a_message_may_come_in_pieces(cuts: list[int]) -> None:
    message = {"rank": 1, "host": "\u540d"}
    data, lines, found = line(message) * 2, Lines(HELLO_LIMIT), []
    for cut in cuts:
        found += lines.feed(data[:cut])
        data = data[cut:]
    assert [*found, *lines.feed(data)] == [message, message]


def test_text_of_others_cannot_steer_a_terminal() -> None:
    assert plain("a\x1b[2Jb\n") == "a?[2Jb?"
    assert len(plain("x" * 9999)) == 300


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


def test_a_hello_fits_its_limit() -> None:
    (hello,) = hellos(1, nnodes=2)
    assert len(line(hello.message())) < HELLO_LIMIT / 4
    assert json.loads(line(hello.message()).removeprefix(MAGIC))["rank"] == 1
