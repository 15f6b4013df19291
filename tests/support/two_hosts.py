"""Two hosts out of network namespaces, joined by one wire, each with a disk of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29655
REWARD = """
import time

def score(data_source, solution_str, ground_truth, extra_info=None):
    time.sleep(0.004)
    return (sum(map(ord, solution_str)) % 7 + len(solution_str)) / 12
"""
WORDS = [
    *("train", "--preset", "quickstart", "--batch_size", "8", "--lr", "1e-4"),
    *("--reward", "reward.py:score", "data.val=[]", "run.seed=1", "train.max_steps=5"),
    *(
        "train.mini_batch_prompts=4",
        "run.save_every=1",
        "run.keep_checkpoints=9",
        "train.device=cpu",
    ),
    *("--output_dir", "run"),
]
HURRIED_RANK = """
import sys
import rlcli.distributed.gather as gather
import rlcli.distributed.process_group as meet
meet.MEETING_S = gather.UNREACHABLE_S = float(sys.argv.pop(1))
gather.TRY_S = 1.0
from rlcli.cli.main import main
main(sys.argv[1:])
"""
HURRIED = f"""
import sys
from rlcli.launcher import launch
from rlcli.launcher.job import Limits
rank = [sys.executable, "-c", {HURRIED_RANK!r}, *sys.argv[1:]]
limits = Limits(meeting_s=float(sys.argv.pop(1)), silence_s=20.0)
launch.__kwdefaults__.update(command=rank, limits=limits)
from rlcli.cli.main import main
main(sys.argv[1:])
"""
"""The command line, waiting less long for other nodes, and its ranks for each other."""

BARE_RANK = """
import os, sys, torch
import rlcli.distributed.process_group as meet
from rlcli.errors import RlcliError
from rlcli.distributed.rank_env import read_rank
meet.MEETING_S = 3.0
try:
    with meet.process_group(read_rank(os.environ), is_cuda=False, progress=print):
        pass
except RlcliError as error:
    print(f"error: {error}")
    sys.exit(error.exit_code)
"""


def why_impossible() -> str:
    """Why this machine cannot make such hosts; empty where it can."""
    if sys.platform != "linux":
        return "two hosts need Linux"
    name = f"rlcli-{os.getpid()}-try"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True, text=True)
        tried = ["ip", "netns", "exec", name, "mount", "--bind", "/tmp", "/tmp"]
        subprocess.run(tried, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        return "two hosts need `ip`: apt-get install iproute2"
    except subprocess.CalledProcessError as error:
        return f"two hosts need root and network namespaces: {error.stderr.strip()}"
    finally:
        if Path("/run/netns", name).exists():
            subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


class Hosts:
    """Both hosts. Node 0 writes into `run` of `folder`; what node 1 has there is `other`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir, self.other = folder / "run", folder / "other"
        self.started: list[subprocess.Popen[str]] = []
        self._names = [f"rlcli-{os.getpid()}-{node}" for node in range(2)]
        for made in (self.run_dir, self.other):
            made.mkdir(exist_ok=True)
        (folder / "reward.py").write_text(REWARD)
        for name in self._names:
            _ip("netns", "add", name)
        one, two = self._names
        _ip("link", "add", "eth0", "netns", one, "type", "veth", "peer", "eth0", "netns", two)
        for node, address in enumerate(ADDRESSES):
            self.ip(node, "addr", "add", f"{address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                self.ip(node, "link", "set", interface, "up")

    def ip(self, node: int, *words: str) -> None:
        """Change the network of a host."""
        _ip("-n", self._names[node], *words)

    def only_ipv6(self, *addresses: str) -> None:
        """These in place of the hosts' addresses."""
        for node, address in enumerate(addresses):
            self.ip(node, "-4", "addr", "flush", "dev", "eth0")
            self.ip(node, "addr", "add", f"{address}/64", "dev", "eth0", "nodad")

    def open_only(self, *ports: int) -> None:
        """Host 0 answers at these ports alone, and nothing it sends from others arrives."""
        for port in ports:
            tcp = ("ipproto", "tcp", "sport", str(port))
            self.ip(0, "rule", "add", "pref", "10", *tcp, "lookup", "main")
        tcp = ("ipproto", "tcp", "sport", "1024-65534")
        self.ip(0, "rule", "add", "pref", "20", *tcp, "blackhole")

    def start(
        self,
        node: int,
        *words: str,
        gpus: int = 1,
        patience_s: float | None = None,
        nnodes: str = "2",
        address: str = ADDRESSES[0],
    ) -> subprocess.Popen[str]:
        """The command line of a node, and what it says."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "NNODES": nnodes, "NODE_RANK": str(node)}
        env |= {"N_GPUS": str(gpus), "MASTER_ADDR": address, "MASTER_PORT": str(PORT)}
        python = [sys.executable, "-m", "rlcli.cli.main"]
        if patience_s is not None:
            python = [sys.executable, "-c", HURRIED, str(patience_s)]
        return self._run(node, [*python, *WORDS, *words], env)

    def _run(self, node: int, command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
        disk = 'mount --bind other run && exec "$@"' if node else 'exec "$@"'
        inside = ["ip", "netns", "exec", self._names[node], "sh", "-c", disk, "sh"]
        started = subprocess.Popen(
            [*inside, *command],
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(started)
        return started

    def start_rank(self, rank: int) -> subprocess.Popen[str]:
        """A rank without an agent, which only meets the other at PORT."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank), "LOCAL_RANK": "0"}
        env |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        env |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(PORT)}
        env |= {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        return self._run(rank, [sys.executable, "-c", BARE_RANK], env)

    def close(self) -> None:
        """End what is left, and take the hosts away."""
        for node in self.started:
            node.kill()
            node.communicate()
        for name in self._names:
            _ip("netns", "del", name)


def ranks_of(node: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that an agent has started."""
    return psutil.Process(node.pid).children()


def ends_of(*nodes: subprocess.Popen[str], limit_s: float = 400.0) -> list[tuple[int, str]]:
    """(exit code, output) of each."""
    said = [node.communicate(timeout=limit_s)[0] for node in nodes]
    return [(node.returncode, text) for node, text in zip(nodes, said, strict=True)]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
