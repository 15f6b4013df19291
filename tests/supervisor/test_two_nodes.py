"""Two supervisors on loopback: they meet, agree or say why not, and lose each other."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from supervised import command_of, free_port, is_alive, start_node
from waiting import wait_until

from rlcli.doctor.nodes.wire import Channel
from rlcli.supervisor import nodes as nodes_of_run
from rlcli.supervisor.nodes import OtherNodes

Start = Callable[[str], "Nodes"]
ROWS = '{"prompt": "1 + 1", "ground_truth": "2", "data_source": "sums"}\n'


class Nodes:
    """Both nodes of a run whose directory they share."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.command = command_of(script, folder)
        self.port = free_port()
        self.started: list[subprocess.Popen[str]] = []
        (folder / "data.jsonl").write_text(ROWS)

    def start(
        self, rank: int, *overrides: str, env: dict[str, str] | None = None, **more: Any
    ) -> subprocess.Popen[str]:
        place = {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        node = start_node(
            self.folder,
            self.command,
            "train.n_gpus=2",
            "train.device=cpu",
            f"data.train={self.folder / 'data.jsonl'}",
            "data.val=[]",
            *overrides,
            env=place | {"MASTER_PORT": str(self.port)} | (env or {}),
            **{"meeting_s": 20.0, **more},
        )
        self.started.append(node)
        return node

    def pid(self, rank: int, relaunches: int = 0) -> int:
        path = self.run_dir / f"pid_{rank}_{relaunches}"
        wait_until(path.exists)
        return int(path.read_text())

    def file(self, name: str) -> str:
        wait_until((self.run_dir / name).exists)
        return (self.run_dir / name).read_text()


@pytest.fixture
def start_nodes(tmp_path: Path) -> Iterator[Start]:
    """Nodes that run a script; those that are left are killed."""
    made: list[Nodes] = []

    def start(script: str) -> Nodes:
        made.append(Nodes(tmp_path, script))
        return made[-1]

    yield start
    for node in (node for nodes in made for node in nodes.started):
        node.kill()
        node.communicate()


def end_of(*nodes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """(exit code, output) of each."""
    said = [node.communicate(timeout=60)[0] for node in nodes]
    return [(node.returncode, text) for node, text in zip(nodes, said, strict=True)]


ENV = "write(f'env_{rank}', json.dumps(dict(os.environ)))\n"
ALL = "[await_file(f'pid_{rank}_{relaunches}') for rank in range(4)]\n"


def test_two_nodes_of_two_ranks_are_one_run(start_nodes: Start) -> None:
    nodes = start_nodes(ENV + ALL + "sys.exit(75 if not rank else 0)\n")
    told = end_of(nodes.start(1), nodes.start(0))
    assert [code for code, _ in told] == [75, 75], told
    envs = [json.loads(nodes.file(f"env_{rank}")) for rank in range(4)]
    assert [env["LOCAL_RANK"] for env in envs] == ["0", "1", "0", "1"]
    assert {env["WORLD_SIZE"] for env in envs} == {"4"}
    assert {env["LOCAL_WORLD_SIZE"] for env in envs} == {"2"}
    (port,) = {env["MASTER_PORT"] for env in envs}
    assert port != str(nodes.port)
    assert {env["MASTER_ADDR"] for env in envs} == {"127.0.0.1"}
    assert {env["RLCLI_RUN_DIR"] for env in envs} == {str(nodes.run_dir)}
    assert {env["GLOO_SOCKET_IFNAME"] for env in envs} == {"lo"}


def test_a_killed_rank_of_another_node_is_named_and_all_start_again(start_nodes: Start) -> None:
    script = (
        ENV.replace("env_{rank}", "env_{rank}_{relaunches}") + ALL
        + "if relaunches: sys.exit(0)\n"
        "if rank == 3: print('the last', flush=True); os.kill(os.getpid(), 9)\n"
        "await_file('never') if rank else (time.sleep(0.2), sys.exit(70))\n"
    )  # fmt: skip
    nodes = start_nodes(script)
    (code, said), (other, _) = end_of(nodes.start(0), nodes.start(1))
    assert (code, other) == (0, 0), said
    assert (
        "rank 3 on node 1 was killed (SIGKILL); its last words: the last; starting again from "
        "the beginning (1 of 3 in 10 minutes)" in said
    )
    ports = {json.loads(nodes.file(f"env_3_{n}"))["MASTER_PORT"] for n in range(2)}
    assert len(ports) == 2


STATUS = "if not rank: write('status.json', json.dumps({'state': 'running', 'step': 1}))\n"
LASTING = (
    STATUS + ALL + "if relaunches or (folder / 'again').exists(): sys.exit(0)\ntime.sleep(60)\n"
)


def test_a_killed_node_may_come_back(start_nodes: Start) -> None:
    nodes = start_nodes(LASTING)
    zero, one = nodes.start(0), nodes.start(1)
    pids = [nodes.pid(rank) for rank in range(4)]
    one.kill()
    wait_until(lambda: not any(map(is_alive, pids)), 10.0)
    (code, said), (other, _) = end_of(zero, nodes.start(1))
    assert (code, other) == (0, 0), said
    assert "node 1 is lost: its connection is closed; starting again" in said


def test_a_killed_node_0_may_come_back(start_nodes: Start) -> None:
    nodes = start_nodes(LASTING)
    zero, one = nodes.start(0), nodes.start(1)
    pids = [nodes.pid(rank) for rank in range(4)]
    (nodes.run_dir / "again").touch()
    zero.kill()
    wait_until(lambda: not any(map(is_alive, pids)), 10.0)
    for path in nodes.run_dir.glob("pid_*"):
        path.unlink()
    (code, zeros), (other, said) = end_of(nodes.start(0, "run.resume=auto"), one)
    assert (code, other) == (0, 0), zeros + said
    assert "node 0 is lost" in said


def test_a_node_that_does_not_come_back_ends_the_run(start_nodes: Start) -> None:
    nodes = start_nodes(LASTING)
    zero, one = nodes.start(0, meeting_s=6.0), nodes.start(1)
    nodes.pid(3)
    one.kill()
    ((code, said),) = end_of(zero)
    assert code == 1
    assert "the lost node did not come back" in said
    assert "node 1: did not come within 6 s" in said


def test_a_signal_to_another_node_reaches_rank_0(start_nodes: Start) -> None:
    script = (
        "signal.signal(signal.SIGTERM, lambda *_: (write(f'signal_{rank}'), sys.exit(9)))\n"
        + ALL + "if rank: await_file('signal_0'); sys.exit(0)\nwrite('ready')\ntime.sleep(60)\n"
    )  # fmt: skip
    nodes = start_nodes(script)
    zero, one = nodes.start(0), nodes.start(1)
    nodes.file("ready")
    one.send_signal(signal.SIGTERM)
    assert [code for code, _ in end_of(zero, one)] == [9, 9]


def test_a_refusal_leaves_no_log_on_any_node(start_nodes: Start) -> None:
    """A script leaves its own files."""
    script = ALL + "print('wrong', flush=True)\nif rank: time.sleep(60)\nsys.exit(2)\n"
    nodes = start_nodes(script)
    told = end_of(nodes.start(0), nodes.start(1))
    assert [code for code, _ in told] == [2, 2]
    assert told[1][1].endswith("the run was refused before it began; node 0 says why.\n")
    assert not list(nodes.run_dir.glob("rank_*.log"))


def test_rank_0_of_a_pod_meets_where_the_others_came(start_nodes: Start) -> None:
    """Its own MASTER_ADDR is localhost, as a PyTorchJob sets it."""
    nodes = start_nodes(ENV + ALL)
    pods = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "WORLD_SIZE": "2", "NODE_RANK": ""}
    zero = nodes.start(0, env={**pods, "RANK": "0", "MASTER_ADDR": "localhost"})
    one = nodes.start(1, env={**pods, "RANK": "1", "MASTER_ADDR": "127.0.0.2"})
    told = end_of(zero, one)
    assert [code for code, _ in told] == [0, 0], told
    envs = [json.loads(nodes.file(f"env_{rank}")) for rank in range(4)]
    assert {env["MASTER_ADDR"] for env in envs} == {"127.0.0.2"}


def test_a_signal_that_comes_while_ranks_are_ended_is_kept() -> None:
    here, there = (Channel(end, 4096) for end in socket.socketpair())
    others = OtherNodes({1: here}, silence_s=5.0)
    for message in ({"signal": 15}, {"killed": 0}):
        there.send(message)
    others.kill()
    assert others.poll() == ([], [15])
    assert not others.lost
    there.close()
    others.close()


def on_one_line() -> tuple[Channel, Channel]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        there = socket.create_connection(door.getsockname())
        here, _ = door.accept()
    return Channel(here, 4096), Channel(there, 4096)


def test_a_node_that_is_told_to_end_may_still_be_speaking() -> None:
    here, there = on_one_line()
    others = OtherNodes({1: here}, silence_s=60.0)
    there.send({"beat": 0})
    end = {"leave_s": 0.0, "is_void": False}
    ending = threading.Thread(target=others.end, args=(75,), kwargs=end)
    ending.start()
    select.select([there], [], [], 60)
    for _ in range(3):  # a closed line would refuse the second at the latest
        there.send({"beat": 0})
        time.sleep(0.05)
    assert there.read(60) == [{"end": {"code": 75, "leave_ms": 0, "is_void": False}}]
    assert ending.is_alive()
    there.close()
    ending.join(60)
    assert not ending.is_alive()


def test_a_node_that_does_not_hang_up_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_of_run, "GOODBYE_LIMIT_S", 0.3)
    here, there = on_one_line()
    OtherNodes({1: here}, silence_s=60.0).end(0, leave_s=0.0, is_void=False)
    assert here.connection.fileno() == -1
    there.close()


def test_another_setting_is_named_with_both_values_on_both_nodes(start_nodes: Start) -> None:
    nodes = start_nodes("")
    for code, said in end_of(nodes.start(0, "train.lr=1e-6"), nodes.start(1, "train.lr=2e-6")):
        assert code == 2
        assert "train.lr: 1e-06 on node 0; 2e-06 on node 1" in said
        assert said[said.index("error: ") :].count("\n") <= 3
    assert not nodes.run_dir.exists()


def test_other_data_and_another_version_are_named(start_nodes: Start) -> None:
    nodes = start_nodes("")
    (nodes.folder / "other.jsonl").write_text(ROWS.replace("1 + 1", "0 + 2"))
    one = nodes.start(1, f"data.train={nodes.folder / 'other.jsonl'}", version="2")
    for code, said in end_of(nodes.start(0), one):
        assert code == 2
        assert "rlcli: 1 on node 0; 2 on node 1; data.train: 64 bytes, sha256 " in said


def test_the_same_data_at_another_place_is_the_same(start_nodes: Start) -> None:
    nodes = start_nodes("")
    (nodes.folder / "other.jsonl").write_text(ROWS)
    one = nodes.start(1, f"data.train={nodes.folder / 'other.jsonl'}")
    assert [code for code, _ in end_of(nodes.start(0), one)] == [0, 0]


def test_a_file_that_one_node_lacks_is_told_to_all(start_nodes: Start) -> None:
    nodes = start_nodes("")
    one = nodes.start(1, f"data.train={nodes.folder / 'nowhere.jsonl'}")
    for code, said in end_of(nodes.start(0), one):
        assert code == 2
        assert "nowhere.jsonl" in said


def test_a_node_that_never_comes_is_named_with_what_was_waited_for(start_nodes: Start) -> None:
    ((code, said),) = end_of(start_nodes("").start(0, meeting_s=0.5))
    assert code == 2
    assert "waiting for node 1/2 at 127.0.0.1:" in said
    assert "node 1: did not come within 0.5 s" in said


def test_a_node_0_that_never_comes_is_told(start_nodes: Start) -> None:
    nodes = start_nodes("")
    ((code, said),) = end_of(nodes.start(1, meeting_s=0.5))
    assert code == 2
    assert f"nothing listens at 127.0.0.1:{nodes.port}" in said


def test_a_taken_port_and_a_wrong_address_are_told(start_nodes: Start) -> None:
    nodes = start_nodes("")
    with socket.create_server(("127.0.0.1", nodes.port)):
        ((code, said),) = end_of(nodes.start(0))
    assert code == 2
    assert f"port {nodes.port} is taken" in said
    ((code, said),) = end_of(nodes.start(0, env={"MASTER_ADDR": "192.0.2.1"}))
    assert code == 2
    assert "MASTER_ADDR=192.0.2.1 is no address of this machine" in said


def test_two_nodes_of_one_number_are_told(start_nodes: Start) -> None:
    nodes = start_nodes("")
    env = {"NNODES": "3"}
    for code, said in end_of(*(nodes.start(rank, env=env) for rank in (0, 1, 1))):
        assert code == 2
        assert "node 1: came twice: from " in said
