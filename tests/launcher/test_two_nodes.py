"""Two agents on loopback: they meet or say why not, and lose each other."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launched import command_of, free_port, is_alive, start_node
from waiting import wait_until

pytestmark = pytest.mark.slow  # threads of the tests wait for processes

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
            **{"meeting_s": 60.0, "silence_s": 3.0, **more},
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
    said = [node.communicate(timeout=600)[0] for node in nodes]
    return [(node.returncode, text) for node, text in zip(nodes, said, strict=True)]


ENV = "write(f'env_{rank}', json.dumps(dict(os.environ)))\n"
ALL = "[await_file(f'pid_{rank}_{relaunches}') for rank in range(size)]\n"


def test_two_nodes_of_two_ranks_are_one_run(start_nodes: Start) -> None:
    nodes = start_nodes(ENV + ALL + "sys.exit(75 if not rank else 0)\n")
    told = end_of(nodes.start(1), nodes.start(0))
    assert [code for code, _ in told] == [75, 75], told
    envs = [json.loads(nodes.file(f"env_{rank}")) for rank in range(4)]
    assert [env["LOCAL_RANK"] for env in envs] == ["0", "1", "0", "1"]
    assert {env["WORLD_SIZE"] for env in envs} == {"4"}
    assert {env["LOCAL_WORLD_SIZE"] for env in envs} == {"2"}


def test_a_killed_rank_of_another_node_is_named_and_all_start_again(start_nodes: Start) -> None:
    script = (
        ALL + "if relaunches: sys.exit(0)\n"
        "if rank == 3: print('the last', flush=True); os.kill(os.getpid(), 9)\n"
        "await_file('never') if rank else (time.sleep(0.2), sys.exit(70))\n"
    )
    nodes = start_nodes(script)
    (code, said), (other, _) = end_of(nodes.start(0), nodes.start(1))
    assert (code, other) == (0, 0), said
    assert (
        "rank 3 on node 1 was killed (SIGKILL); its last words: the last; starting again from "
        "the beginning (1 of 3 in 10 minutes)" in said
    )


STATUS = "if not rank: write('status.json', json.dumps({'state': 'running', 'step': 1}))\n"
LASTING = "if (folder / 'again').exists(): sys.exit(0)\n" + STATUS + ALL + "time.sleep(60)\n"


def test_a_killed_node_may_come_back(start_nodes: Start) -> None:
    nodes = start_nodes(LASTING)
    zero, one = nodes.start(0), nodes.start(1)
    pids = [nodes.pid(rank) for rank in range(4)]
    (nodes.run_dir / "again").touch()
    one.kill()
    wait_until(lambda: not any(map(is_alive, pids)), 30.0)
    again = nodes.start(1)
    (code, said), (other, told) = end_of(zero, again)
    assert (code, other) == (0, 0), said + told
    assert "node 1 is lost: no heartbeat from it for 3 s; starting again" in said


def test_a_killed_node_0_ends_the_others(start_nodes: Start) -> None:
    nodes = start_nodes(LASTING)
    zero, one = nodes.start(0), nodes.start(1)
    pids = [nodes.pid(rank) for rank in range(4)]
    zero.kill()
    ((code, said),) = end_of(one)
    assert code == 1
    assert "node 0 is lost: its store is gone" in said
    assert not any(map(is_alive, pids))


def test_a_node_that_does_not_come_back_ends_the_run(start_nodes: Start) -> None:
    nodes = start_nodes(LASTING)
    zero, one = nodes.start(0, meeting_s=10.0), nodes.start(1)
    nodes.pid(3)
    one.kill()
    ((code, said),) = end_of(zero)
    assert code == 1
    assert "node 1 is lost: no heartbeat from it for 3 s, and no node came in its place" in said
    status = json.loads((nodes.run_dir / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["reason"].startswith("node 1 is lost: ")


def test_a_run_that_may_shrink_goes_on_without_a_lost_node(start_nodes: Start) -> None:
    nodes = start_nodes(LASTING)
    zero, one = (nodes.start(rank, env={"NNODES": "1:2"}) for rank in range(2))
    pids = [nodes.pid(rank) for rank in range(4)]
    (nodes.run_dir / "again").touch()
    one.kill()
    ((code, said),) = end_of(zero)
    assert code == 0, said
    assert "node 1 is lost: no heartbeat from it for 3 s; starting again" in said
    assert (nodes.run_dir / "pid_0_1").exists()
    assert not (nodes.run_dir / "pid_2_1").exists()
    assert not any(map(is_alive, pids))


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


def test_rank_0_of_a_pod_has_a_name_of_its_own_for_itself(start_nodes: Start) -> None:
    """A PyTorchJob may set its MASTER_ADDR to localhost."""
    nodes = start_nodes(ENV + ALL)
    pods = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "WORLD_SIZE": "2", "NODE_RANK": ""}
    zero = nodes.start(0, env={**pods, "RANK": "0", "MASTER_ADDR": "localhost"})
    one = nodes.start(1, env={**pods, "RANK": "1", "MASTER_ADDR": "127.0.0.2"})
    told = end_of(zero, one)
    assert [code for code, _ in told] == [0, 0], told
    envs = [json.loads(nodes.file(f"env_{rank}")) for rank in range(4)]
    assert {env["MASTER_PORT"] for env in envs} == {str(nodes.port)}


def test_a_node_that_never_comes_is_named_with_what_was_waited_for(start_nodes: Start) -> None:
    ((code, said),) = end_of(start_nodes("").start(0, meeting_s=0.5))
    assert code == 2
    assert "waiting for node 1 at 127.0.0.1:" in said
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
