"""Which rank or node a process is by its variables, and which variables are refused."""

from __future__ import annotations

import pytest

from rlcli.distributed.rank_env import find_node, first_host, read_rank, without_local_rank
from rlcli.errors import LaunchError

HERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234"}
THERE = {"MASTER_ADDR": "gpu01", "MASTER_PORT": "1234"}
PAIR = {"RANK": "1", "WORLD_SIZE": "2"}
TORCHRUN = PAIR | HERE | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
SLURM = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_NODEID": "1"}
SLURM |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[07-08]"}
PER_NODE = SLURM | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}
OMPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}
OMPI |= {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
ONE_HOST = OMPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    ("env", "rank", "size", "local_rank", "local_size", "host"),
    [
        (TORCHRUN, 1, 2, 1, 2, "127.0.0.1"),
        (TORCHRUN | POD, 1, 2, 1, 2, "127.0.0.1"),
        (TORCHRUN | PER_NODE, 1, 2, 1, 2, "127.0.0.1"),
        (PAIR | HERE, 1, 2, 1, 2, "127.0.0.1"),
        (PAIR | {"MASTER_ADDR": "localhost"}, 1, 2, 1, 2, "localhost"),
        (PAIR | THERE, 1, 2, None, None, "gpu01"),
        (PAIR | THERE | {"LOCAL_RANK": "0"}, 1, 2, 0, None, "gpu01"),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"} | THERE,
            *(5, 8, 1, 4, "gpu01"),
        ),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0, 1, 0, 1, "127.0.0.1"),
        (SLURM, 3, 4, 1, None, "gpu07"),
        (SLURM | {"SLURM_JOB_NUM_NODES": "1"}, 3, 4, 1, 4, "127.0.0.1"),
        (SLURM | THERE, 3, 4, 1, None, "gpu01"),
        (SLURM | {"ENVIRONMENT": "BATCH", "SLURM_STEP_ID": "0"}, 3, 4, 1, None, "gpu07"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "9"}, 3, 4, 1, None, "gpu07"),
        (OMPI | THERE, 3, 4, 1, 2, "gpu01"),
        (ONE_HOST, 3, 4, 3, 4, "127.0.0.1"),
        (ONE_HOST | PER_NODE, 3, 4, 3, 4, "127.0.0.1"),
        (HYDRA, 1, 2, 1, 2, "127.0.0.1"),
        (
            {f"HOROVOD_{name}": "1" for name in ("RANK", "LOCAL_RANK")}
            | {f"HOROVOD_{name}": "2" for name in ("SIZE", "LOCAL_SIZE")},
            *(1, 2, 1, 2, "127.0.0.1"),
        ),
        (
            {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2", "FLUX_TASK_LOCAL_ID": "1"} | HERE,
            *(1, 2, 1, 2, "127.0.0.1"),
        ),
    ],
)
def test_a_launcher_s_process_is_one_rank(
    env: dict[str, str],
    rank: int,
    size: int,
    local_rank: int | None,
    local_size: int | None,
    host: str,
) -> None:
    found = read_rank(env)
    assert found is not None
    assert (found.rank, found.world_size) == (rank, size)
    assert (found.local_rank, found.local_world_size) == (local_rank, local_size)
    assert found.master_addr == host
    assert not found.is_own


@pytest.mark.parametrize(
    "env",
    [
        {},
        HERE,
        {"LOCAL_RANK": "0"},
        {"WORLD_SIZE": "1"},
        {"RANK": " ", "WORLD_SIZE": ""},
        POD | PAIR | THERE,
        POD | {"RANK": "0", "WORLD_SIZE": "1"} | THERE,
        POD | {"PET_NNODES": "1", "PET_NODE_RANK": "0", "RANK": "0", "WORLD_SIZE": "8"} | THERE,
        POD | {"PET_NNODES": "1:4", "NODE_RANK": "0"} | THERE,
        PER_NODE,
        PER_NODE | {"PMI_RANK": "1", "PMI_SIZE": "2"},
        SLURM | {"SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"},
        {name: text for name, text in SLURM.items() if name != "SLURM_PROCID"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_process_or_a_node_started_alone_is_no_rank(env: dict[str, str]) -> None:
    assert read_rank(env) is None


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (PAIR, "MASTER_ADDR is not set"),
        ({"RANK": "1"}, "RANK=1 in the environment without WORLD_SIZE"),
        ({"RANK": "0"}, "without WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "without RANK"),
        ({"LOCAL_RANK": "1"}, "without RANK and WORLD_SIZE"),
        (
            PAIR | HERE | {"RANK": "2"},
            "RANK=2 in the environment is invalid: expected a number from 0 to 1",
        ),
        (PAIR | HERE | {"RANK": "one"}, "RANK=one"),
        (PAIR | HERE | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT=http"),
        ({"RANK": "0", "WORLD_SIZE": "1"} | SLURM, "SLURM started 4 processes"),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | OMPI | THERE,
            "OpenMPI started 4",
        ),
        (
            {"RANK": "2", "WORLD_SIZE": "4"} | OMPI | THERE,
            "of which this is rank 3",
        ),
        (OMPI, "MASTER_ADDR is not set"),
        (POD | PAIR, "MASTER_ADDR is not set"),
        (POD | {"WORLD_SIZE": "2"}, "without RANK"),
        (POD | PAIR | THERE | {"RANK": "2"}, "RANK=2"),
        (POD | {"PET_NNODES": "1:4", "PET_NODE_RANK": "0"} | THERE, "PET_NNODES=1:4"),
        (POD | PAIR | {"PET_NNODES": "1:4", "PET_NODE_RANK": "0"} | THERE, "PET_NNODES=1:4"),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "1"}, "without RANK"),
        (PAIR | {"MASTER_ADDR": "gpu01:29500"}, "MASTER_ADDR=gpu01:29500"),
        ({k: v for k, v in PER_NODE.items() if k != "SLURM_NODEID"}, "SLURM_NODEID or"),
    ],
)
def test_what_is_ambiguous_is_refused_in_one_sentence(env: dict[str, str], said: str) -> None:
    with pytest.raises(LaunchError) as caught:
        read_rank(env)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_jobs_of_slurm_on_one_machine_meet_at_different_ports() -> None:
    ports = {
        found.master_port
        for job in ("101", "102")
        if (found := read_rank(SLURM | {"SLURM_JOB_ID": job})) is not None
    }
    assert len(ports) == 2


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--local_rank=1", "train", "--seed", "2"], ["train", "--seed", "2"]),
        (["train", "--local-rank", "1", "--seed", "2"], ["train", "--seed", "2"]),
        (["train", "--seed", "2"], ["train", "--seed", "2"]),
    ],
)
def test_a_launcher_s_local_rank_option_is_taken(
    words: list[str], left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "")
    assert without_local_rank(words) == left
    monkeypatch.setenv("LOCAL_RANK", "0")
    if words != left:
        with pytest.raises(LaunchError, match="--local_rank=1, but LOCAL_RANK=0"):
            without_local_rank(words)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[01-04,7],cpu3", "gpu01"),
        ("cpu3,gpu[01-04]", "cpu3"),
        ("node-17", "node-17"),
        ("rack[1-2]node[03,05]", "rack1node03"),
        ("gpu[007,010-012].cluster.org", "gpu007.cluster.org"),
    ],
)
def test_the_first_host_of_a_list_is_node_0(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_step_may_have_fewer_nodes_than_its_job() -> None:
    env = {
        "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "a[1-4]", "SLURM_NODEID": "1",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "a[3-4]",
    }  # fmt: skip
    found = find_node(env)
    assert found is not None
    assert (found.nnodes, found.node_rank, found.master_addr) == (2, 1, "a3")
    assert find_node(env | {"SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"}) is None


def test_a_job_s_hosts_may_stand_in_another_variable_than_their_number_would_have() -> None:
    older = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_NODEID": "1"}
    found = find_node(older)
    assert found is not None
    assert (found.nnodes, found.master_addr) == (2, "a1")
    named = find_node({"SLURM_NNODES": "2", "SLURM_NODEID": "1", "MASTER_ADDR": "a1"})
    assert named is not None
    assert named.master_addr == "a1"


PODS = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "MASTER_ADDR": "m", "MASTER_PORT": "23456"}


def test_pods_of_a_pytorch_job_are_nodes() -> None:
    found = find_node(PODS | {"WORLD_SIZE": "2", "RANK": "0"})
    assert found is not None
    assert (found.nnodes, found.node_rank, found.counted_by) == (2, 0, "WORLD_SIZE")
    assert (found.master_addr, found.master_port, found.is_pod) == ("m", 23456, True)


def test_pods_are_counted_by_torchrun_s_variables_where_world_size_counts_processes() -> None:
    pet = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "p"}
    found = find_node(PODS | pet | {"WORLD_SIZE": "16", "RANK": "8", "MASTER_ADDR": ""})
    assert found is not None
    assert (found.nnodes, found.node_rank, found.master_addr) == (2, 1, "p")


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "m"},
        PODS,
        PODS | {"WORLD_SIZE": "1", "RANK": "0"},
        PODS | {"WORLD_SIZE": "2", "RANK": "2"},
        PODS | {"PET_NNODES": "1:4", "PET_NODE_RANK": "0"},
        {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "a1", "SLURM_NODEID": "0"},
        {"SLURM_JOB_NUM_NODES": "two", "SLURM_JOB_NODELIST": "a1", "SLURM_NODEID": "0"},
    ],
)
def test_one_machine_is_no_allocation(env: dict[str, str]) -> None:
    assert find_node(env) is None
