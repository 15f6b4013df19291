"""Machines as SLURM and Kubernetes name them."""

from __future__ import annotations

import pytest

from rlcli.schedulers import find_allocation, first_host


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
    found = find_allocation(env)
    assert found is not None
    assert (found.nnodes, found.node_rank, found.master_addr) == (2, 1, "a3")
    assert find_allocation(env | {"SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"}) is None


PODS = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "MASTER_ADDR": "m", "MASTER_PORT": "23456"}


def test_pods_of_a_pytorch_job_are_nodes() -> None:
    found = find_allocation(PODS | {"WORLD_SIZE": "2", "RANK": "0"})
    assert found is not None
    assert (found.nnodes, found.node_rank, found.counted_by) == (2, 0, "WORLD_SIZE")
    assert (found.master_addr, found.master_port, found.is_pod) == ("m", "23456", True)


def test_pods_are_counted_by_torchrun_s_variables_where_world_size_counts_processes() -> None:
    pet = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "p"}
    found = find_allocation(PODS | pet | {"WORLD_SIZE": "16", "RANK": "8"})
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
    assert find_allocation(env) is None
