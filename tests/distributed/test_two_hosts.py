"""The command line on two hosts: the run of one process, through losses, or a clear refusal."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import time
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
DRAWS = [0, *(pytest.param(draw, marks=pytest.mark.nightly) for draw in range(1, 20))]
"""One random step in every run, 20 in nightly runs. launcher/test_two_nodes.py tests the other
losses in every run."""
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
    wait_until((hosts.run_dir / "checkpoints" / f"step_{step}").exists, 300.0)


def test_two_hosts_give_what_one_process_gives(hosts: Hosts, alone: Path) -> None:
    check_well(hosts, hosts.start(0), hosts.start(1))
    check_same(hosts.run_dir, alone)
    assert {path.name for path in hosts.other.iterdir()} == {"rank_1.log", "reward.log"}
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
    names = {path.name for path in hosts.other.iterdir()}
    assert names == {"reward.log", *(f"rank_{gpus + i}.log" for i in range(gpus))}


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
    logs = {path.name for path in hosts.other.iterdir()}
    assert logs == {"rank_2.log", "rank_3.log", "reward.log"}


@pytest.mark.parametrize("words", LOSSES)
def test_a_killed_host_may_come_back(hosts: Hosts, alone: Path, words: tuple[str, ...]) -> None:
    zero, one = (hosts.start(node, *words) for node in range(2))
    await_step(hosts, 2)
    ranks = ranks_of(one)
    one.kill()
    wait_until(lambda: not any(rank.is_running() for rank in ranks), 5.0)
    said = check_well(hosts, zero, hosts.start(1, *words))
    assert "node 1 is lost: no heartbeat from it for 20 s; starting again from step" in said
    check_same(hosts.run_dir, alone)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_run_that_may_shrink_goes_on_with_the_host_that_is_left(draw: int, hosts: Hosts) -> None:
    zero, one = (hosts.start(node, "train.max_steps=9", nnodes="1:2") for node in range(2))
    await_step(hosts, random.Random(draw).randrange(1, 7))
    ranks = ranks_of(one)
    begun_s = time.monotonic()
    one.kill()
    steps = len(metrics(hosts.run_dir))
    wait_until(lambda: len(metrics(hosts.run_dir)) > steps, 120.0)
    assert time.monotonic() - begun_s < 120
    said = check_well(hosts, zero)
    assert not any(rank.is_running() for rank in ranks)
    found = re.search(r"node 1 is lost: .*; starting again from step ([0-9]+) ", said)
    assert found is not None
    check_resumed_on_one(hosts, int(found[1]))


def check_resumed_on_one(hosts: Hosts, step: int) -> None:
    """The weights are, to the bit, those of a run that one process resumed at `step`."""
    shrunk = load_file(hosts.run_dir / "checkpoints/step_9/policy.safetensors")
    hosts.run_dir.rename(hosts.folder / "shrunk")
    shutil.copytree(hosts.folder / "shrunk", hosts.run_dir)
    train_here(hosts.folder, "train.max_steps=9", "--resume", str(step))
    alone = load_file(hosts.run_dir / "checkpoints/step_9/policy.safetensors")
    assert all(torch.equal(value, alone[name]) for name, value in shrunk.items())


@pytest.mark.nightly
@pytest.mark.parametrize("draw", range(20))
def test_without_host_0_the_other_ends_within_a_minute(
    draw: int, hosts: Hosts, alone: Path
) -> None:
    """Killed, or in every second draw with its wire cut; the run can be resumed."""
    is_cut = bool(draw % 2)
    zero, one = hosts.start(0), hosts.start(1)
    await_step(hosts, random.Random(draw).randrange(1, 4))
    ranks = ranks_of(one)
    begun_s = time.monotonic()
    if is_cut:
        hosts.ip(1, "link", "set", "eth0", "down")
    else:
        zero.kill()
    ((code, said),) = ends_of(one)
    assert time.monotonic() - begun_s < 60
    assert code == 1, said
    assert "node 0 is lost: " in said
    assert not any(rank.is_running() for rank in ranks)
    zero.kill()
    zero.wait()
    if is_cut:
        hosts.ip(1, "link", "set", "eth0", "up")
    check_resumed(hosts, alone)


def check_resumed(hosts: Hosts, alone: Path) -> None:
    """Both hosts, started again, end as one process does."""
    for code, said in ends_of(*(hosts.start(node, "--resume", "auto") for node in range(2))):
        assert code == 0, said
    check_same(hosts.run_dir, alone)


@pytest.mark.nightly
def test_a_host_whose_wire_was_cut_may_come_back(hosts: Hosts, alone: Path) -> None:
    zero, one = hosts.start(0), hosts.start(1)
    await_step(hosts, 2)
    hosts.ip(1, "link", "set", "eth0", "down")
    ((code, _),) = ends_of(one)
    assert code == 1
    hosts.ip(1, "link", "set", "eth0", "up")
    (code, said), (other, _) = ends_of(zero, hosts.start(1))
    assert (code, other) == (0, 0), said
    assert "node 1 is lost: " in said
    check_same(hosts.run_dir, alone)


@pytest.mark.nightly
@pytest.mark.parametrize("draw", range(20))
def test_a_lost_host_is_named_if_the_run_may_not_shrink(
    draw: int, hosts: Hosts, alone: Path
) -> None:
    zero, one = hosts.start(0, patience_s=60.0), hosts.start(1, patience_s=60.0)
    await_step(hosts, random.Random(draw).randrange(1, 4))
    one.kill()
    ((code, said),) = ends_of(zero)
    assert code == 1, said
    status = json.loads((hosts.run_dir / "status.json").read_text())
    assert (status["state"], status["resumable"]) == ("failed", True)
    assert "node 1 is lost: " in status["reason"]
    check_resumed(hosts, alone)


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
    assert "MASTER_ADDR=127.0.0.1 is an address that only node 0 itself can reach" in told[0][1]
    assert f"nothing listens at 127.0.0.1:{PORT}" in told[1][1]


def test_a_closed_port_is_told(hosts: Hosts) -> None:
    hosts.open_only()
    told = ends_of(*(hosts.start(node, patience_s=2.0) for node in range(2)))
    check_refused(hosts, *told)
    assert "node 1: did not come within 2 s" in told[0][1]
    assert f"no answer from 10.77.0.1:{PORT}" in told[1][1]
    assert f"open port {PORT} on node 0" in told[1][1]


@pytest.mark.nightly
def test_a_firewall_that_lets_only_the_agents_meet_is_told(hosts: Hosts) -> None:
    hosts.open_only(PORT)
    told = ends_of(*(hosts.start(node, patience_s=10.0) for node in range(2)))
    assert [code for code, _ in told] == [2, 2], told
    said = told[0][1] + told[1][1]  # whoever gives up first ends the other
    assert re.search("rank [01]: cannot connect with all others: ", said)
    assert "open all TCP ports between the nodes" in said


@pytest.mark.nightly
def test_a_firewall_between_the_ranks_themselves_is_told_by_both(hosts: Hosts) -> None:
    """They find each other at the one open port, and then no further."""
    hosts.open_only(PORT)
    told = ends_of(*(hosts.start_rank(node) for node in range(2)))
    for rank, (code, said) in enumerate(told):
        assert code == 2, said
        assert f"rank {rank}: cannot connect with all others: " in said
        assert "Traceback" not in said


@pytest.mark.nightly
def test_another_setting_is_told_on_both(hosts: Hosts) -> None:
    told = ends_of(hosts.start(0, "--lr", "1e-4"), hosts.start(1, "--lr", "2e-4"))
    check_refused(hosts, *told)
    for _, said in told:
        assert "train.lr: 0.0001 on rank 0; 0.0002 on rank 1" in said
