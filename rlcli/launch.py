"""What NODE_RANK, MASTER_ADDR and MASTER_PORT, or a scheduler, say about the machines of a run.

How many machines and GPUs there are is a setting: train.nnodes (NNODES), train.n_gpus (N_GPUS).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlcli.errors import ConfigError, LaunchError
from rlcli.machine import die_with_parent
from rlcli.rank_env import AGENT, RankEnv, read_port
from rlcli.schedulers import Allocation, find_allocation, is_pod, is_slurm_task, whole

if TYPE_CHECKING:
    from rlcli.config.resolved import Resolved
    from rlcli.config.schema import Config

MOST_PER_CORE = 8
"""Processes on the CPU that one core may have to share, for a try of a run of many GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """This machine among the machines. `given`: NODE_RANK, MASTER_ADDR, if they are set.

    min_nodes: a run that has lost nodes goes on with so many. scheduler: the one whose variables
    were read. is_pod: as in `Allocation`.
    """

    nnodes: int = 1
    min_nodes: int = 1
    node_rank: int
    master_addr: str | None
    master_port: int
    given: tuple[str, ...] = ()
    scheduler: str = ""
    is_pod: bool = False


def end_with_agent(env: Mapping[str, str]) -> None:
    """Have the kernel kill this rank when its agent dies. Exit if the agent is dead already."""
    if AGENT in env:
        die_with_parent()
        if os.getppid() != json.loads(env[AGENT])["pid"]:
            os._exit(1)


def num_served(config: Config) -> int:
    """GPUs that servers of vLLM, started by rlcli, have for themselves."""
    rollout = config.rollout
    return rollout.replicas * rollout.tensor_parallel if rollout.starts_servers else 0


def num_local(config: Config, num_gpus: int) -> int:
    """Processes on this machine: where nobody says how many, one for each GPU that is left.

    num_gpus: those that the run may use here.
    """
    return config.train.n_gpus or max(1, num_gpus - num_served(config))


def count_nodes(resolved: Resolved, env: Mapping[str, str]) -> Resolved:
    """The settings with the number of machines that a scheduler says, where nobody said another.

    Raises: ConfigError for variables that cannot be.
    """
    is_open = resolved.sources["train.nnodes"] == "default"
    found = find_allocation(env)
    if found is None or found.nnodes == resolved.config.train.nnodes:
        return resolved
    nnodes, scheduler, variable = found.nnodes, found.scheduler, found.counted_by
    if is_open:
        return resolved.adjust({"train.nnodes": nnodes}, origin=f"env {variable}")
    if resolved.config.train.nnodes == 1 and (is_pod(env) or is_slurm_task(env)):
        raise LaunchError(
            f"{scheduler} started this on {nnodes} nodes, but {resolved.where('train.nnodes')}: "
            "each node would train a model of its own. Unset NNODES, or start one node."
        )
    return resolved.tell(
        f"{scheduler} gave this job {nnodes} nodes, but {resolved.where('train.nnodes')} is used."
    )


def fit_to_ranks(resolved: Resolved, ranks: RankEnv) -> Resolved:
    """The settings of a rank, with a note on how many processes train.

    Raises: LaunchError if they ask for other numbers than the launcher started.
    """
    check_ranks(resolved, ranks)
    if ranks.is_own and ranks.num_nodes == resolved.config.train.nnodes:
        resolved = resolved.tell(*ranks.notes)  # none of a run that has lost nodes
    if ranks.num_nodes and ranks.num_nodes != resolved.config.train.nnodes:
        origin = f"{ranks.launcher}'s variables"
        resolved = resolved.adjust({"train.nnodes": ranks.num_nodes}, origin=origin)
        _refuse_servers(resolved, ranks.local_world_size or 1, num_gpus=None)
    if ranks.world_size == 1 or ranks.is_own:
        return resolved
    return resolved.tell(
        f"{ranks.world_size} processes train together, started by {ranks.launcher}."
    )


def check_ranks(resolved: Resolved, ranks: RankEnv) -> None:
    """Raises: LaunchError if the settings ask for other numbers than the launcher started."""
    if ranks.is_own:
        return
    train = resolved.config.train
    nnodes = train.nnodes if resolved.sources["train.nnodes"] != "default" else None
    for key, asked, started, unit in (
        ("train.n_gpus", train.n_gpus, ranks.local_world_size, "processes on this machine"),
        ("train.nnodes", nnodes, ranks.num_nodes, "nodes"),
    ):
        if asked is not None and started is not None and asked != started:
            raise LaunchError(
                f"{resolved.where(key)}, but {ranks.launcher} started {started} {unit}: leave the "
                "setting out, or start rlcli without a launcher."
            )


def read_launch(config: Config, env: Mapping[str, str]) -> Launch:
    """The launch variables, checked. An empty one counts as unset.

    Raises: ConfigError for a value that cannot be, or an address that is missing.
    """
    nnodes = config.train.nnodes
    given = tuple(name for name in ("NODE_RANK", "MASTER_ADDR") if _text(env, name))
    found = find_allocation(env)
    if found and found.nnodes == nnodes and "NODE_RANK" not in given:
        return replace(_allocated(found, env), min_nodes=_min_nodes(config))
    launch = Launch(
        nnodes=nnodes,
        node_rank=_node_rank(_text(env, "NODE_RANK"), nnodes),
        master_addr=_master_addr(_text(env, "MASTER_ADDR")),
        master_port=read_port(env),
        given=given,
    )
    if nnodes > 1 and given == ("NODE_RANK",):
        raise ConfigError(
            f"NODE_RANK={launch.node_rank} of {nnodes} nodes, but MASTER_ADDR is not set.\n"
            "Set MASTER_ADDR to the address of node 0, the same on every node."
        )
    return replace(launch, min_nodes=_min_nodes(config))


def _min_nodes(config: Config) -> int:
    """Raises: ConfigError if a run cannot have so many."""
    train = config.train
    if train.min_nodes is not None and train.min_nodes > train.nnodes:
        raise ConfigError(
            f"train.min_nodes={train.min_nodes} is more than train.nnodes={train.nnodes}. "
            "Set NNODES=1:2 for two nodes, of which one may be lost."
        )
    return train.min_nodes or train.nnodes


def _allocated(found: Allocation, env: Mapping[str, str]) -> Launch:
    """What the scheduler says; MASTER_ADDR and MASTER_PORT of the environment come first."""
    port = found.master_port or _text(env, "MASTER_PORT")
    return Launch(
        nnodes=found.nnodes,
        node_rank=found.node_rank,
        master_addr=_master_addr(_text(env, "MASTER_ADDR") or found.master_addr),
        master_port=read_port({"MASTER_PORT": port}),
        scheduler=found.scheduler,
        is_pod=found.is_pod,
    )


def check_processes(
    resolved: Resolved,
    launch: Launch,
    *,
    num_processes: int,
    num_visible_gpus: int | None,
    num_cores: int,
) -> list[str]:
    """Notes on how many processes train, and on what of the machines stays unused.

    num_processes: on this machine. num_visible_gpus: None where they were not counted.

    Raises: LaunchError where they cannot find each other, or this machine is too small for them.
    """
    train = resolved.config.train
    notes: list[str] = []
    if train.nnodes > 1 and launch.master_addr is None:
        raise LaunchError(
            f"{resolved.where('train.nnodes')}, but MASTER_ADDR is not set, so the nodes cannot "
            "find each other. Start every node, with NODE_RANK=1 on the next:\n"
            f"NNODES={train.nnodes} NODE_RANK=0 MASTER_ADDR=192.168.1.1 ./train.sh\n"
            "or set NNODES=1 to train on this machine alone."
        )
    if train.nnodes == 1 and launch.given:
        named = ", ".join(f"env {name}" for name in launch.given)
        notes.append(f"not used: {named} (train.nnodes is 1; set NNODES).")
    if launch.scheduler:
        notes.append(
            f"{launch.scheduler}: this is node {launch.node_rank} of {launch.nnodes}, "
            f"node 0 is {launch.master_addr}."
        )
    num_gpus = num_visible_gpus if train.device in ("auto", "cuda") else 0
    _refuse_servers(resolved, num_processes, num_gpus=num_gpus)
    _refuse_too_many(resolved, num_processes, num_gpus=num_gpus, num_cores=num_cores)
    left = max(0, (num_gpus or 0) - num_served(resolved.config))
    counts = _counts(resolved, num_processes, num_gpus=left, num_cores=num_cores)
    return notes + counts


def _refuse_servers(resolved: Resolved, here: int, *, num_gpus: int | None) -> None:
    served = num_served(resolved.config)
    if served and resolved.config.train.nnodes > 1:
        raise LaunchError(
            f"{resolved.where('rollout.engine')}: rlcli starts servers for one machine, and this "
            f"run has {resolved.where('train.nnodes')}.\n"
            "Start them yourself, and give rollout.url=http://HOST:8000 (docs/vllm.md)."
        )
    if served and num_gpus and here + served > num_gpus:
        raise LaunchError(
            f"{here} to train and {served} for vLLM's servers are more GPUs than the {num_gpus} "
            "of this machine.\n"
            f"Set N_GPUS={max(1, num_gpus - served)}, lower rollout.replicas, or use "
            "rollout.engine=vllm, which shares them."
        )


def _refuse_too_many(
    resolved: Resolved, here: int, *, num_gpus: int | None, num_cores: int
) -> None:
    if resolved.config.train.n_gpus is None:
        if num_gpus is not None and here > max(1, num_gpus):
            raise LaunchError(
                f"nvidia-smi shows {here} GPUs, but torch finds {num_gpus}.\n"
                f"rlcli doctor says why. Until that is mended, set N_GPUS={max(1, num_gpus)}."
            )
        return
    if num_gpus and here > num_gpus:
        raise LaunchError(
            f"{resolved.where('train.n_gpus')}, but this machine shows {num_gpus}.\n"
            f"Set N_GPUS={num_gpus}, or see CUDA_VISIBLE_DEVICES and rlcli doctor."
        )
    most = MOST_PER_CORE * num_cores
    if num_gpus == 0 and here > most:
        raise LaunchError(
            f"{resolved.where('train.n_gpus')}, but without GPUs this machine takes {most} "
            f"processes at most, {MOST_PER_CORE} for each of {num_cores} cores.\n"
            f"Set N_GPUS={num_cores}, or see CUDA_VISIBLE_DEVICES and rlcli doctor."
        )


def _counts(resolved: Resolved, here: int, *, num_gpus: int, num_cores: int) -> list[str]:
    """num_gpus: those that may be used."""
    nnodes = resolved.config.train.nnodes
    notes: list[str] = []
    if here * nnodes > 1:
        device = "on a GPU each" if num_gpus else "on the CPU"
        spread = f"{nnodes} nodes x {here}" if nnodes > 1 else str(here)
        notes.append(f"{spread} processes train together, {device}.")
    if resolved.config.train.n_gpus is None and num_gpus > 1:
        if here == num_gpus:
            told = f"all {num_gpus} GPUs are used, as train.n_gpus is not set. N_GPUS=1 uses one."
        else:
            told = (
                f"{here} of {num_gpus} GPUs is used: nvidia-smi does not show the others. "
                f"--n_gpus {num_gpus} trains on all of them."
            )
        notes.append(told)
    if not num_gpus and 1 < here > num_cores:
        notes.append(f"more processes ({here}) than cores ({num_cores}): fewer are faster.")
    return notes


def _text(env: Mapping[str, str], name: str) -> str:
    return env.get(name, "").strip()


def _node_rank(text: str, nnodes: int) -> int:
    if not text:
        return 0
    rank = whole(text)
    if rank is not None and rank < nnodes:
        return rank
    if rank is not None and nnodes == 1:
        raise ConfigError(
            f"NODE_RANK={text} (environment), but train.nnodes is 1, so there is only node 0.\n"
            "Set NNODES to the number of machines, or unset NODE_RANK."
        )
    raise ConfigError(
        f"NODE_RANK={text} (environment) is no node of {nnodes} (train.nnodes). "
        f"Set a number from 0 to {nnodes - 1}, another one on every node."
    )


def _master_addr(text: str) -> str | None:
    if "/" in text or any(character.isspace() for character in text):
        raise ConfigError(
            f"MASTER_ADDR={text} (environment) is no address. "
            "Set the host name or IP address of node 0, such as 192.168.1.1."
        )
    host, colon, port = text.partition(":")
    if colon and port.isdigit():
        raise ConfigError(
            f"MASTER_ADDR={text} (environment) has a port in it. "
            f"Set MASTER_ADDR={host} MASTER_PORT={port}."
        )
    return text or None
