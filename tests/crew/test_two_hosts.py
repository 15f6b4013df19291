"""The command line on two hosts: the run of one process, through losses, or a clear refusal."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from two_hosts import PORT, REWARD, WORDS, Hosts, ends_of, ranks_of, why_impossible
from waiting import wait_until

from rlcli.cli.main import main

WHY = why_impossible()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)
LOSSES = [
    pytest.param(words, id=name, marks=pytest.mark.nightly)
    for name, words in (("torch", ()), ("zero 3", ("--engine", "deepspeed", "train.zero_stage=3")))
]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "reward.py").write_text(REWARD)
    train_here(folder)
    return folder / "run"


def train_here(folder: Path, *words: str) -> None:
    """The same command line in this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main([*WORDS, *words])
    assert not ended.value.code


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_same(run: Path, alone: Path) -> None:
    """Weights and moments after the last step, and the rewards of every step."""
    state = "checkpoints/step_5/policy.safetensors"
    found, expected = load_file(run / state), load_file(alone / state)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    rewards = [[row["reward_mean"] for row in metrics(each)] for each in (run, alone)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6)
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def check_well(hosts: Hosts, *nodes: subprocess.Popen[str]) -> str:
    """What node 0 said, after all nodes have ended well."""
    told = ends_of(*nodes)
    assert [code for code, _ in told] == [0] * len(told), told
    logs = [path.read_text() for path in hosts.other.iterdir()]
    assert not any("Traceback" in text for text in logs), logs
    return told[0][1]


def await_step(hosts: Hosts, step: int) -> None:
    """A checkpoint of that step, so that there is something to go on from."""
    wait_until((hosts.run_dir / "checkpoints" / f"step_{step}").exists, 60.0)


def test_two_hosts_give_what_one_process_gives(hosts: Hosts, alone: Path) -> None:
    check_well(hosts, hosts.start(0), hosts.start(1))
    check_same(hosts.run_dir, alone)
    assert [path.name for path in hosts.other.iterdir()] == ["rank_1.log"]
    here = {"reward.py", "run", "other", "__pycache__"}
    assert {path.name for path in hosts.folder.iterdir()} <= here


@pytest.mark.nightly
def test_so_do_hosts_without_ipv4(hosts: Hosts, alone: Path) -> None:
    hosts.only_ipv6("fd77::1", "fd77::2")
    check_well(hosts, *(hosts.start(node, address="fd77::1") for node in range(2)))
    check_same(hosts.run_dir, alone)


@pytest.mark.nightly
@pytest.mark.parametrize(("gpus", "stage"), [(2, 0), (2, 1), (2, 2), (2, 3), (1, 3)])
def test_so_do_two_ranks_on_each_and_every_stage(
    hosts: Hosts, alone: Path, gpus: int, stage: int
) -> None:
    words = ["--engine", "deepspeed", f"train.zero_stage={stage}"]
    check_well(hosts, *(hosts.start(node, *words, gpus=gpus) for node in range(2)))
    check_same(hosts.run_dir, alone)
    names = sorted(path.name for path in hosts.other.iterdir())
    assert names == [f"rank_{gpus + i}.log" for i in range(gpus)]


@pytest.mark.parametrize("words", LOSSES)
def test_ranks_that_are_killed_on_one_host_start_again_on_both(
    hosts: Hosts, alone: Path, words: tuple[str, ...]
) -> None:
    """Only node 0 can read the checkpoint."""
    zero, one = (hosts.start(node, *words, gpus=2) for node in range(2))
    await_step(hosts, 2)
    for rank in ranks_of(one):
        rank.kill()
    said = check_well(hosts, zero, one)
    assert "on node 1 was killed (SIGKILL)" in said
    assert "starting again from step" in said
    check_same(hosts.run_dir, alone)
    assert {path.name for path in hosts.other.iterdir()} == {"rank_2.log", "rank_3.log"}


@pytest.mark.parametrize("words", LOSSES)
def test_a_killed_host_may_come_back(hosts: Hosts, alone: Path, words: tuple[str, ...]) -> None:
    zero, one = (hosts.start(node, *words) for node in range(2))
    await_step(hosts, 2)
    ranks = ranks_of(one)
    one.kill()
    wait_until(lambda: not any(rank.is_running() for rank in ranks), 5.0)
    said = check_well(hosts, zero, hosts.start(1, *words))
    assert "node 1 is lost: its connection is closed; starting again from step" in said
    check_same(hosts.run_dir, alone)


@pytest.mark.nightly
def test_a_killed_host_0_may_come_back(hosts: Hosts, alone: Path) -> None:
    zero, one = hosts.start(0), hosts.start(1)
    await_step(hosts, 2)
    ranks = [*ranks_of(zero), *ranks_of(one)]
    zero.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(rank.is_running() for rank in ranks), 10.0)
    check_well(hosts, hosts.start(0, "--resume", "auto"), one)
    check_same(hosts.run_dir, alone)


@pytest.mark.nightly
def test_a_cut_wire_is_noticed_on_both_sides(hosts: Hosts, alone: Path) -> None:
    zero, one = hosts.start(0, patience_s=60.0), hosts.start(1, patience_s=60.0)
    await_step(hosts, 2)
    ranks = [*ranks_of(zero), *ranks_of(one)]
    hosts.ip(1, "link", "set", "eth0", "down")
    wait_until(lambda: not any(rank.is_running() for rank in ranks), 20.0)
    hosts.ip(1, "link", "set", "eth0", "up")
    said = check_well(hosts, zero, one)
    assert "node 1 is lost: " in said
    check_same(hosts.run_dir, alone)


@pytest.mark.nightly
def test_a_run_of_two_hosts_goes_on_in_one_process(hosts: Hosts, alone: Path) -> None:
    check_well(hosts, *(hosts.start(node, "train.max_steps=3") for node in range(2)))
    shutil.rmtree(hosts.run_dir / "checkpoints" / "final")
    train_here(hosts.folder, "--resume", "auto")
    check_same(hosts.run_dir, alone)


def check_refused(hosts: Hosts, *told: tuple[int, str]) -> None:
    """Exit code 2, three lines at most, and no run."""
    for code, said in told:
        assert code == 2, said
        assert said[said.index("error: ") :].count("\n") <= 3
    assert not list(hosts.run_dir.iterdir())
    assert not list(hosts.other.iterdir())


def test_a_wrong_address_is_told(hosts: Hosts) -> None:
    nodes = [hosts.start(node, patience_s=1.0, address="10.88.0.1") for node in range(2)]
    told = ends_of(*nodes)
    check_refused(hosts, *told)
    assert "MASTER_ADDR=10.88.0.1 is no address of this machine" in told[0][1]
    assert "no route to 10.88.0.1" in told[1][1]


def test_the_loopback_address_is_told(hosts: Hosts) -> None:
    nodes = [hosts.start(node, patience_s=1.0, address="127.0.0.1") for node in range(2)]
    told = ends_of(*nodes)
    check_refused(hosts, *told)
    assert "127.0.0.1 on node 0, which only node 0 itself can reach" in told[0][1]
    assert f"nothing listens at 127.0.0.1:{PORT}" in told[1][1]


def test_a_closed_port_is_told(hosts: Hosts) -> None:
    hosts.open_only()
    told = ends_of(*(hosts.start(node, patience_s=2.0) for node in range(2)))
    check_refused(hosts, *told)
    assert "node 1: did not come within 2 s" in told[0][1]
    assert f"no answer from 10.77.0.1:{PORT}" in told[1][1]
    assert f"open port {PORT} in node 0's firewall" in told[1][1]


def test_a_firewall_that_lets_only_the_supervisors_meet_is_told(hosts: Hosts) -> None:
    hosts.open_only(PORT)
    told = ends_of(*(hosts.start(node, patience_s=10.0) for node in range(2)))
    assert [code for code, _ in told] == [2, 2], told
    said = told[0][1]
    assert "rank 1 cannot speak with all other ranks: no answer from 10.77.0.1:" in said
    assert "Open all TCP ports between the nodes" in said


@pytest.mark.nightly
def test_a_firewall_between_the_ranks_themselves_is_told_by_both(hosts: Hosts) -> None:
    """They find each other at the one open port, and then no further."""
    hosts.open_only(PORT)
    told = ends_of(*(hosts.start_rank(node) for node in range(2)))
    for rank, (code, said) in enumerate(told):
        assert code == 2, said
        assert f"error: rank {rank} cannot speak with all other ranks: " in said
        assert "Traceback" not in said


def test_another_setting_is_told_on_both(hosts: Hosts) -> None:
    told = ends_of(hosts.start(0, "--lr", "1e-4"), hosts.start(1, "--lr", "2e-4"))
    check_refused(hosts, *told)
    for _, said in told:
        assert "train.lr: 0.0001 on node 0; 0.0002 on node 1" in said
