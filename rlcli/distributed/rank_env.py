"""Which rank or node this process is, from the environment that its launcher or scheduler set.

torchrun, accelerate, DeepSpeed and Ray Train number ranks by torch's own variables, MPI and SLURM
by theirs. SLURM with a task per node and PyTorch jobs of Kubernetes number nodes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlcli.errors import LaunchError

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 29500
TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""torch's own variables; the default of the last is DEFAULT_PORT."""
MPI = {
    launcher: [prefix + name for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
    for launcher, prefix in (
        ("OpenMPI", "OMPI_COMM_WORLD_"),
        ("MVAPICH", "MV2_COMM_WORLD_"),
        ("jsrun", "JSM_NAMESPACE_"),
        ("Horovod", "HOROVOD_"),
    )
}
MPI["MPI"] = ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]
MPI["Flux"] = ["FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", ""]
"""Variables of rank, world size, local rank and local world size; MPI: MPICH and Intel MPI."""
SLURM_NODES = ("SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES")
SLURM_HOSTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
"""Those of the step come first, as it may have fewer nodes than its job."""
TORCH_LAUNCHERS = {
    "ACCELERATE_MIXED_PRECISION": "accelerate",
    "TORCHELASTIC_RUN_ID": "torchrun",
    "CROSS_RANK": "deepspeed",
    "RAY_JOB_ID": "Ray",
}
"""Launchers of torch's kind, by a variable that no other launcher sets."""
PARENTS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK", "OMPI_COMM_WORLD_RANK", "RAY_JOB_ID")
"""Set by launchers that are the parent of each rank: torch elastic, DeepSpeed, mpirun, Ray."""
AGENT = "RLCLI_AGENT"
"""Set by rlcli's own agent, beside torch elastic's variables: its process id and its notes."""
_LOCAL_RANK = re.compile("--local[-_]rank(=.*)?")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


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

    def variables(self) -> dict[str, str]:
        """torch's variables, for libraries that read them; both local values must be known."""
        values = (self.rank, self.world_size, self.local_rank, self.local_world_size)
        return dict(
            zip(TORCH, map(str, (*values, self.master_addr, self.master_port)), strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEnv:
    """This node among `nnodes`. min_nodes: fewest nodes with which a run continues.

    scheduler, counted_by: whose variables were read, and which has the number of nodes; or empty.
    is_pod: master_addr may be a name that node 0 itself cannot listen at.
    """

    nnodes: int = 1
    min_nodes: int = 1
    node_rank: int = 0
    master_addr: str = ""
    master_port: int = DEFAULT_PORT
    scheduler: str = ""
    counted_by: str = ""
    is_pod: bool = False


def read_rank(env: Mapping[str, str]) -> RankEnv | None:
    """The rank that a launcher gave this process; None if it is not one of several.

    A process that a launcher started alone (WORLD_SIZE=1) is a rank too: it starts no others.

    Raises: LaunchError if the variables contradict each other or leave the rank open.
    """
    rank = _torch(env)
    if AGENT in env:
        assert rank is not None
        notes = tuple(json.loads(env[AGENT])["notes"])
        return replace(rank, launcher="rlcli", is_own=True, notes=notes)
    tasks = [*_mpi(env), *_slurm(env)]
    if rank is None:
        return tasks[0] if tasks else None
    for task in tasks:
        is_same = (rank.rank, rank.world_size) == (task.rank, task.world_size)
        if rank.world_size in (1, task.world_size) and not is_same:
            raise LaunchError(
                f"RANK={rank.rank} and WORLD_SIZE={rank.world_size} in the environment, but "
                f"{task.launcher} started {task.world_size} processes, of which this is rank "
                f"{task.rank}: unset RANK, WORLD_SIZE and LOCAL_RANK, or start one process."
            )
    return rank


def find_node(env: Mapping[str, str]) -> NodeEnv | None:
    """This node among several of SLURM or Kubernetes; None if its number is not known."""
    counted_by = _first_set(env, SLURM_NODES)
    if counted_by and text_of(env, "SLURM_NODEID"):
        scheduler, number = "SLURM", "SLURM_NODEID"
        host = first_host(env.get(_first_set(env, SLURM_HOSTS), ""))
    elif is_pod(env):  # PET_ is torchrun's; elsewhere WORLD_SIZE counts ranks
        scheduler, host = "Kubernetes", text_of(env, "PET_MASTER_ADDR")
        counted_by, number = "WORLD_SIZE", "RANK"
        if text_of(env, "PET_NNODES"):
            counted_by, number = "PET_NNODES", "PET_NODE_RANK"
    else:
        return None
    nnodes, node_rank = number_in(env, counted_by) or 0, number_in(env, number)
    host = read_address(env) or host
    if node_rank is None or node_rank >= nnodes or nnodes == 1 or not host:
        return None
    return NodeEnv(
        nnodes=nnodes,
        node_rank=node_rank,
        master_addr=host,
        master_port=read_port(env, default=number_in(env, "PET_MASTER_PORT") or DEFAULT_PORT),
        scheduler=scheduler,
        counted_by=counted_by,
        is_pod=scheduler == "Kubernetes",
    )


def is_pod(env: Mapping[str, str]) -> bool:
    """Whether this is a container of Kubernetes, where RANK and WORLD_SIZE may count pods."""
    return "KUBERNETES_SERVICE_HOST" in env


def is_slurm_task(env: Mapping[str, str]) -> bool:
    """Whether srun started this process. The batch script has SLURM_PROCID=0 too."""
    is_batch_script = env.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in env
    return "SLURM_PROCID" in env and not is_batch_script


def _torch(env: Mapping[str, str]) -> RankEnv | None:
    """torch's variables. A pod's RANK and WORLD_SIZE without LOCAL_RANK count machines."""
    given = {name: text for name in TORCH[:3] if (text := text_of(env, name))}
    if "LOCAL_RANK" not in given and is_pod(env):
        pods = text_of(env, "PET_NNODES")
        is_alone = (pods or given.get("WORLD_SIZE", "1")) == "1"
        if is_alone or _is_node(env, pods and f"PET_NNODES={pods}"):
            return None
    alone = {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    if alone | given == alone:
        return None
    missing = [name for name in TORCH[:2] if name not in given]
    if missing:
        shown = ", ".join(f"{name}={text}" for name, text in given.items())
        raise LaunchError(
            f"{shown} in the environment without {' and '.join(missing)}: set RANK and WORLD_SIZE "
            "for every process that trains this model, or unset them."
        )
    found = [launcher for name, launcher in TORCH_LAUNCHERS.items() if name in env]
    rank = _rank(env, found[0] if found else "a launcher (RANK, WORLD_SIZE)", TORCH)
    num_nodes = number_in(env, "GROUP_WORLD_SIZE") or number_in(env, "CROSS_SIZE")
    return replace(
        rank,
        num_nodes=num_nodes or rank.num_nodes,
        restart_count=number_in(env, "TORCHELASTIC_RESTART_COUNT") or 0,
        run_id=env.get("TORCHELASTIC_RUN_ID", "") or env.get("RAY_JOB_ID", ""),
        has_launcher_store=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        # Ray Train first joins its own group, whose rank 0 listens at MASTER_PORT
        may_have_launcher_store="RAY_JOB_ID" in env,
    )


def _mpi(env: Mapping[str, str]) -> Iterator[RankEnv]:
    for launcher, names in MPI.items():
        # srun sets PMI_RANK for every task, and SLURM's own variables are more exact
        is_slurm = launcher == "MPI" and names[2] not in env and "SLURM_PROCID" in env
        if (number_in(env, names[1]) or 1) > 1 and not is_slurm:
            yield _rank(env, launcher, names)


def _slurm(env: Mapping[str, str]) -> Iterator[RankEnv]:
    """A SLURM task, if there are more tasks than nodes; a task per node is a node."""
    size_name = _first_set(env, ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"))
    num_tasks = number_in(env, size_name) or 1
    num_nodes = number_in(env, _first_set(env, SLURM_NODES)) or 1
    if num_tasks == 1 or not is_slurm_task(env):
        return
    if num_tasks <= num_nodes:
        _is_node(env, f"{size_name}={num_tasks} without SLURM_NODEID or SLURM_JOB_NODELIST")
        return
    job, step = (number_in(env, name) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    yield _rank(
        env,
        "SLURM",
        ("SLURM_PROCID", size_name, "SLURM_LOCALID", ""),
        num_nodes=num_nodes,
        host=first_host(env.get(_first_set(env, SLURM_HOSTS), "")),
        port=DEFAULT_PORT + (job * 7 + step) % 2000,  # jobs may share a machine
    )


def _is_node(env: Mapping[str, str], given: str) -> bool:
    """Whether it is known which node this is.

    Raises: LaunchError if it is not, although the variables `given` count nodes.
    """
    if text_of(env, "NODE_RANK") or find_node(env):
        return True
    if given:
        raise LaunchError(
            f"{given} in the environment does not say which node of how many this is: set NNODES, "
            "NODE_RANK and MASTER_ADDR, or start rlcli with torchrun."
        )
    return False


def _rank(
    env: Mapping[str, str],
    launcher: str,
    names: Sequence[str],
    *,
    num_nodes: int | None = None,
    host: str = "",
    port: int = DEFAULT_PORT,
) -> RankEnv:
    """names: of the variables, as in MPI. host, port: of rank 0 without MASTER_ADDR, MASTER_PORT.

    Raises: LaunchError for a value out of its range, or if the address of rank 0 is missing.
    """
    world_size = _number(env, names[1], least=1)
    rank = _number(env, names[0], most=world_size - 1)
    address = read_address(env)
    local_size = local_rank = None
    if world_size == 1 or num_nodes == 1:
        local_size = world_size
    elif text_of(env, names[3]):
        local_size = _number(env, names[3], least=1, most=world_size)
    elif num_nodes is None and is_loopback_name(address):
        local_size = world_size
    if text_of(env, names[2]):
        local_rank = _number(env, names[2], most=(local_size or world_size) - 1)
    elif local_size and world_size % local_size == 0:
        local_rank = rank % local_size
    if local_size and world_size % local_size == 0:
        num_nodes = num_nodes or world_size // local_size
    address = address or (LOOPBACK if local_size == world_size else host)
    if not address:
        raise LaunchError(
            f"{launcher}: {world_size} processes, but MASTER_ADDR is not set: set it to the "
            f"address of rank 0's machine for all of them ({LOOPBACK} if they are all on one "
            "machine)."
        )
    return RankEnv(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_size,
        master_addr=address,
        master_port=read_port(env, default=port),
        launcher=launcher,
        num_nodes=num_nodes,
    )


def first_host(nodes: str) -> str:
    """The first host of SLURM's list: gpu01 of `gpu[01-04,7],cpu3`."""
    bare = _BRACKETS.sub(lambda part: re.split("[-,]", part[1])[0], nodes.strip())
    return bare.partition(",")[0]


def text_of(env: Mapping[str, str], name: str) -> str:
    """A variable without blanks around it; one that is empty counts as unset."""
    return env.get(name, "").strip()


def _first_set(env: Mapping[str, str], names: Sequence[str]) -> str:
    return next((name for name in names if text_of(env, name)), "")


def number_in(env: Mapping[str, str], name: str) -> int | None:
    """A variable as a number if it is plain digits, else None."""
    text = text_of(env, name)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def _number(env: Mapping[str, str], name: str, *, least: int = 0, most: int = 2**20) -> int:
    found = number_in(env, name)
    if found is None or not least <= found <= most:
        raise LaunchError(
            f"{name}={text_of(env, name)} in the environment is invalid: expected a number from "
            f"{least} to {most}."
        )
    return found


def read_port(env: Mapping[str, str], *, default: int = DEFAULT_PORT) -> int:
    """The port in MASTER_PORT; `default` if it is not set. Raises: LaunchError if it is invalid."""
    if not text_of(env, "MASTER_PORT"):
        return default
    return _number(env, "MASTER_PORT", least=1, most=65535)


def read_address(env: Mapping[str, str]) -> str:
    """The host in MASTER_ADDR; empty if it is not set. Raises: LaunchError if it is invalid."""
    text = text_of(env, "MASTER_ADDR")
    _, colon, port = text.partition(":")
    if re.search(r"[/\s]", text) or (colon and port.isdigit()):
        raise LaunchError(
            f"MASTER_ADDR={text} in the environment is invalid: expected the host name or IP "
            "address of node 0, such as 192.168.1.1. Its port goes into MASTER_PORT."
        )
    return text


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
    value, *rest = [*words[at].split("=", 1)[1:], *words[at + 1 :], ""]
    found = text_of(os.environ, "LOCAL_RANK")
    if found and found != value:
        raise LaunchError(
            f"--local_rank={value}, but LOCAL_RANK={found} in the environment: leave one of them "
            "out."
        )
    os.environ["LOCAL_RANK"] = value
    return words[:at] + rest[:-1]
