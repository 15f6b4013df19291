"""The machines that a scheduler gave the run: SLURM, and PyTorch jobs of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """This machine among those of a job. counted_by: the variable that has their number.

    is_pod: the address of node 0 may be a name that node 0 itself cannot listen at.
    """

    scheduler: str
    counted_by: str
    nnodes: int
    node_rank: int
    master_addr: str
    master_port: str = ""
    is_pod: bool = False


def find_allocation(env: Mapping[str, str]) -> Allocation | None:
    """What SLURM or Kubernetes says of several machines; None where there is one, or no word."""
    found = _slurm(env) or _pods(env)
    return found if found and found.nnodes > 1 and found.node_rank < found.nnodes else None


def first_host(nodes: str) -> str:
    """The first host of SLURM's list: gpu01 of `gpu[01-04,7],cpu3`."""
    bare = _BRACKETS.sub(lambda part: re.split("[-,]", part[1])[0], nodes.strip())
    return bare.partition(",")[0]


def whole(text: str) -> int | None:
    """The number that plain digits say; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def is_pod(env: Mapping[str, str]) -> bool:
    """Whether this is a container of Kubernetes, where RANK and WORLD_SIZE may count pods."""
    return "KUBERNETES_SERVICE_HOST" in env


def is_slurm_task(env: Mapping[str, str]) -> bool:
    """Whether srun started this process. The batch script has SLURM_PROCID=0 too."""
    is_batch_script = env.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in env
    return "SLURM_PROCID" in env and not is_batch_script


def _slurm(env: Mapping[str, str]) -> Allocation | None:
    # a step may have fewer nodes than its job, and SLURM_NODEID counts those of the step
    for count, hosts in (
        ("SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST"),
        ("SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST"),
        ("SLURM_NNODES", "SLURM_NODELIST"),
    ):
        nnodes, rank = whole(env.get(count, "")), whole(env.get("SLURM_NODEID", ""))
        nodes = env.get(hosts) or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST", "")
        if nnodes is not None and rank is not None and nodes:
            return Allocation(
                scheduler="SLURM",
                counted_by=count,
                nnodes=nnodes,
                node_rank=rank,
                master_addr=first_host(nodes),
            )
    return None


def _pods(env: Mapping[str, str]) -> Allocation | None:
    """PET_ variables are of torchrun and count pods; WORLD_SIZE counts them where those are not."""
    if not is_pod(env):
        return None
    for count, number, prefix in (
        ("PET_NNODES", "PET_NODE_RANK", "PET_"),
        ("WORLD_SIZE", "RANK", ""),
    ):
        nnodes, rank = whole(env.get(count, "")), whole(env.get(number, ""))
        address = env.get(f"{prefix}MASTER_ADDR", "") or env.get("MASTER_ADDR", "")
        if nnodes is not None and rank is not None and address:
            return Allocation(
                scheduler="Kubernetes",
                counted_by=count,
                nnodes=nnodes,
                node_rank=rank,
                master_addr=address,
                master_port=env.get(f"{prefix}MASTER_PORT", "") or env.get("MASTER_PORT", ""),
                is_pod=True,
            )
    return None
