"""Rank and world size of this process, from the environment that its launcher set.

torchrun, accelerate, DeepSpeed and Ray Train set torch's own variables; SLURM and MPI have theirs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlcli.errors import LaunchError
from rlcli.place import LOOPBACK, Place
from rlcli.schedulers import find_allocation, first_host, is_pod, is_slurm_task, whole

if TYPE_CHECKING:
    from rlcli.checkpoint import Resume

DEFAULT_PORT = 29500
"""torch's own default."""
MPI = {
    "OpenMPI": "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK "
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MVAPICH": "MV2_COMM_WORLD_RANK MV2_COMM_WORLD_SIZE MV2_COMM_WORLD_LOCAL_RANK "
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "MPI": "PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS",
    "jsrun": "JSM_NAMESPACE_RANK JSM_NAMESPACE_SIZE JSM_NAMESPACE_LOCAL_RANK "
    "JSM_NAMESPACE_LOCAL_SIZE",
    "Horovod": "HOROVOD_RANK HOROVOD_SIZE HOROVOD_LOCAL_RANK HOROVOD_LOCAL_SIZE",
    "Flux": "FLUX_TASK_RANK FLUX_JOB_SIZE FLUX_TASK_LOCAL_ID -",
}
"""Variables of rank, world size, local rank and local world size; MPI: MPICH and Intel MPI."""
_LOCAL_RANK = re.compile(r"--local[-_]rank(=.*)?")
PLAIN = "a launcher (RANK, WORLD_SIZE)"
PARENTS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK", "OMPI_COMM_WORLD_RANK", "RAY_JOB_ID")
"""Set by launchers that are the parent of each rank: torch elastic, DeepSpeed, mpirun, Ray."""
AGENT = "RLCLI_AGENT"
"""Set by rlcli's own agent, beside torch elastic's variables: its process id and its notes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnv:
    """This process among `world_size`. local_rank, local_world_size: None if not in the variables.

    has_launcher_store: the launcher has a TCPStore of torch at master_addr and master_port.
    may_have_launcher_store: it has one there, or the port is free for rank 0.
    is_own: rlcli's own agent started it. notes: what that agent noted on the processes.
    """

    rank: int
    world_size: int
    local_rank: int | None
    local_world_size: int | None
    master_addr: str
    master_port: int
    launcher: str
    num_nodes: int | None = None
    restart_count: int = 0
    run_id: str = ""
    has_launcher_store: bool = False
    may_have_launcher_store: bool = False
    is_own: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_one_machine(self) -> bool:
        """Whether all ranks are known to be on this machine."""
        return self.local_world_size == self.world_size or is_loopback_name(self.master_addr)

    def place(self, run_dir: Path, resume: Resume = "no") -> Place:
        """This process in the run; its local rank must be known."""
        return Place(
            rank=self.rank,
            local_rank=self.local_rank or 0,
            size=self.world_size,
            local_size=self.local_world_size or 1,
            run_dir=run_dir,
            resume=resume,
        )

    def variables(self) -> dict[str, str]:
        """torch's variables, for libraries that read them; both local values must be known."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def read_rank(env: Mapping[str, str]) -> RankEnv | None:
    """The rank that a launcher gave this process; None if it is not one of several.

    A process that a launcher started alone (WORLD_SIZE=1) is a rank too: it starts no others.

    Raises: LaunchError if the variables contradict each other or leave the rank open.
    """
    if AGENT in env:
        ours = _torch(env)
        assert ours is not None
        notes = tuple(json.loads(env[AGENT])["notes"])
        return replace(ours, launcher="rlcli", is_own=True, notes=notes)
    tasks = [found for found in (*_mpi(env), _slurm(env)) if found is not None]
    rank = _torch(env)
    if rank is None:
        return tasks[0] if tasks else None
    for task in tasks:
        if rank.world_size == 1:
            raise LaunchError(
                f"WORLD_SIZE=1 in the environment, but {task.launcher} started "
                f"{task.world_size} processes, which would train a model each: unset RANK, "
                "WORLD_SIZE and LOCAL_RANK, or start one process."
            )
        if task.world_size == rank.world_size and task.rank != rank.rank:
            raise LaunchError(
                f"RANK={rank.rank} in the environment, but {task.launcher} says {task.rank}: "
                "unset RANK, WORLD_SIZE and LOCAL_RANK."
            )
    return rank


def _torch(env: Mapping[str, str]) -> RankEnv | None:
    """torch's variables. A pod's RANK and WORLD_SIZE without LOCAL_RANK count machines."""
    has = {name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if env.get(name, "").strip()}
    if "LOCAL_RANK" not in has and is_pod(env) and _is_whole_pod(env):
        return None
    if not has or (has == {"LOCAL_RANK"} and env["LOCAL_RANK"].strip() == "0"):
        return None
    if "WORLD_SIZE" in has and "RANK" not in has and env["WORLD_SIZE"].strip() == "1":
        return None
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in has]
    if missing:
        given = ", ".join(f"{name}={env[name]}" for name in sorted(has))
        raise LaunchError(
            f"{given} in the environment without {' and '.join(missing)}: set RANK and WORLD_SIZE "
            "for every process that trains this model, or unset them."
        )
    world_size = _number(env, "WORLD_SIZE", least=1)
    rank = _number(env, "RANK", most=world_size - 1)
    local = _local(env, "LOCAL_RANK", "LOCAL_WORLD_SIZE", rank, world_size)
    return RankEnv(
        rank=rank,
        world_size=world_size,
        local_rank=local[0],
        local_world_size=local[1],
        master_addr=_address(env, _torch_launcher(env), world_size, local[1]),
        master_port=read_port(env),
        launcher=_torch_launcher(env),
        num_nodes=_num_nodes(env, world_size, local[1]),
        restart_count=whole(env.get("TORCHELASTIC_RESTART_COUNT", "")) or 0,
        run_id=env.get("TORCHELASTIC_RUN_ID", "") or env.get("RAY_JOB_ID", ""),
        has_launcher_store=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        # Ray Train joins a group of its own first, whose rank 0 listens at MASTER_PORT
        may_have_launcher_store="RAY_JOB_ID" in env,
    )


def _is_whole_pod(env: Mapping[str, str]) -> bool:
    """Whether this pod is one machine of a run, so that rlcli starts its ranks.

    Raises: LaunchError if PET_NNODES, torchrun's own variable, has a range.
    """
    pods = (env.get("PET_NNODES") or env.get("WORLD_SIZE", "")).strip()
    if not pods or pods == "1" or env.get("NODE_RANK", "").strip() or find_allocation(env):
        return True
    if "PET_NNODES" in env:
        raise LaunchError(
            f"PET_NNODES={pods} in the environment does not say which node of how many this pod "
            "is: start torchrun in each pod, or set NNODES, NODE_RANK and MASTER_ADDR."
        )
    return False


def _torch_launcher(env: Mapping[str, str]) -> str:
    for name, launcher in (
        ("ACCELERATE_MIXED_PRECISION", "accelerate"),
        ("TORCHELASTIC_RUN_ID", "torchrun"),
        ("CROSS_RANK", "deepspeed"),
        ("RAY_JOB_ID", "Ray"),
    ):
        if name in env:
            return launcher
    return PLAIN


def _num_nodes(env: Mapping[str, str], world_size: int, local: int | None) -> int | None:
    for name in ("GROUP_WORLD_SIZE", "CROSS_SIZE"):
        if (found := whole(env.get(name, ""))) is not None:
            return found
    return world_size // local if local and world_size % local == 0 else None


def _mpi(env: Mapping[str, str]) -> Iterator[RankEnv]:
    for launcher, names in MPI.items():
        rank_name, size_name, local_name, local_size_name = names.split()
        if (whole(env.get(size_name, "")) or 1) == 1:
            continue
        if launcher == "MPI" and local_name not in env and "SLURM_PROCID" in env:
            continue  # srun sets PMI_RANK for every task, and SLURM's own variables are more exact
        world_size = _number(env, size_name)
        rank = _number(env, rank_name, most=world_size - 1)
        local = _local(env, local_name, local_size_name, rank, world_size)
        yield RankEnv(
            rank=rank,
            world_size=world_size,
            local_rank=local[0],
            local_world_size=local[1],
            master_addr=_address(env, launcher, world_size, local[1]),
            master_port=read_port(env),
            launcher=launcher,
            num_nodes=_num_nodes({}, world_size, local[1]),
        )


def _slurm(env: Mapping[str, str]) -> RankEnv | None:
    """A SLURM task, if there are more tasks than nodes; a task per node is a node."""
    size_name = next((n for n in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if env.get(n)), None)
    if size_name is None or not is_slurm_task(env):
        return None
    world_size = whole(env[size_name]) or 1
    nodes_name = ("SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES")
    nodes = next((whole(env[name]) for name in nodes_name if env.get(name)), None) or 1
    if world_size <= nodes:
        if world_size > 1 and not find_allocation(env) and not env.get("NODE_RANK", "").strip():
            raise LaunchError(
                f"SLURM started {world_size} tasks on {nodes} nodes, but SLURM_NODEID or "
                "SLURM_JOB_NODELIST is not set: set NNODES, NODE_RANK and MASTER_ADDR."
            )
        return None
    rank = _number(env, "SLURM_PROCID", most=world_size - 1)
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    return RankEnv(
        rank=rank,
        world_size=world_size,
        local_rank=whole(env.get("SLURM_LOCALID", "")),
        local_world_size=world_size if nodes == 1 else None,
        master_addr=env.get("MASTER_ADDR", "").strip()
        or (LOOPBACK if nodes == 1 else first_host(hosts or env.get("SLURM_NODELIST", ""))),
        master_port=read_port(env, default=_slurm_port(env)),
        launcher="SLURM",
        num_nodes=nodes,
    )


def _slurm_port(env: Mapping[str, str]) -> int:
    """A port of the job's own: jobs may share a machine."""
    job, step = (whole(env.get(name, "")) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return DEFAULT_PORT + (job * 7 + step) % 2000 if job else DEFAULT_PORT


def _local(
    env: Mapping[str, str], rank_name: str, size_name: str, rank: int, world_size: int
) -> tuple[int | None, int | None]:
    """(local rank, local world size), from each other where one is missing."""
    size = _number(env, size_name, least=1) if env.get(size_name, "").strip() else None
    if world_size == 1:
        size = 1
    if size is not None and size > world_size:
        raise LaunchError(
            f"{size_name}={size} in the environment, but there are {world_size} processes in all."
        )
    if size is None and is_loopback_name(env.get("MASTER_ADDR", "").strip()):
        size = world_size
    if env.get(rank_name, "").strip():
        return _number(env, rank_name, most=(size or world_size) - 1), size
    if size is not None and world_size % size == 0:
        return rank % size, size
    return None, size


def _address(env: Mapping[str, str], launcher: str, world_size: int, local: int | None) -> str:
    """MASTER_ADDR; the loopback address if all ranks are on this machine."""
    address = env.get("MASTER_ADDR", "").strip()
    if address or local == world_size:
        return address or LOOPBACK
    raise LaunchError(
        f"{launcher}: {world_size} processes, but MASTER_ADDR is not set: set it to the address of "
        f"rank 0's machine for all of them ({LOOPBACK} if they are all on one machine)."
    )


def read_port(env: Mapping[str, str], *, default: int = DEFAULT_PORT) -> int:
    """The port in MASTER_PORT; `default` if it is not set. Raises: LaunchError if it is invalid."""
    text = env.get("MASTER_PORT", "").strip()
    if not text:
        return default
    port = whole(text)
    if port is None or not 1 <= port <= 65535:
        raise LaunchError(
            f"MASTER_PORT={text} (environment) is no port. Set a number from 1 to 65535, "
            f"the same on every node, or unset it for {default}."
        )
    return port


def _number(env: Mapping[str, str], name: str, *, least: int = 0, most: int = 10**9) -> int:
    text = env.get(name, "").strip()
    number = whole(text)
    if number is None or not least <= number <= most:
        expected = f"from {least} to {most}" if most < 10**9 else f"{least} or more"
        raise LaunchError(
            f"{name}={text} in the environment is invalid: expected a number {expected}, set by "
            "the launcher."
        )
    return number


def is_loopback_name(host: str) -> bool:
    """Whether `host` names this machine by a loopback address."""
    return host in ("localhost", "::1") or host.startswith("127.")


def without_local_rank(words: list[str]) -> list[str]:
    """Remove --local_rank, which DeepSpeed and older launchers add, from a command line.

    Its value becomes LOCAL_RANK. Raises: LaunchError if the environment has another one.
    """
    at = next((i for i, word in enumerate(words) if _LOCAL_RANK.fullmatch(word)), None)
    if at is None:
        return words
    _, has_value, text = words[at].partition("=")
    after = at + 1 if has_value else at + 2
    text = text if has_value else "".join(words[at + 1 : after])
    found = os.environ.get("LOCAL_RANK", "").strip()
    if found and found != text:
        raise LaunchError(
            f"--local_rank={text}, but LOCAL_RANK={found} in the environment: leave one of them "
            "out."
        )
    os.environ["LOCAL_RANK"] = text
    return words[:at] + words[after:]
