"""How many nodes and processes train, by the settings and the environment.

train.nnodes is also set by NNODES, train.n_gpus by N_GPUS.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from rlcli.distributed.rank_env import (
    AGENT,
    PARENTS,
    NodeEnv,
    RankEnv,
    find_node,
    is_slurm_task,
    number_in,
    read_address,
    read_port,
    text_of,
)
from rlcli.errors import ConfigError, LaunchError
from rlcli.system.hardware import die_with_parent

if TYPE_CHECKING:
    from rlcli.config.resolved import Resolved
    from rlcli.config.schema import Config

MOST_PER_CORE = 8
"""CPU processes per core at most: enough to try out a run of many GPUs."""


def end_with_launcher(env: Mapping[str, str]) -> None:
    """Have the kernel kill this rank when its launcher dies. Exit if its agent is dead already."""
    if any(name in env for name in PARENTS):
        die_with_parent()
    if AGENT in env and os.getppid() != json.loads(env[AGENT])["pid"]:
        os._exit(1)


def num_served(config: Config) -> int:
    """GPUs reserved for the vLLM servers that rlcli starts."""
    rollout = config.rollout
    return rollout.replicas * rollout.tensor_parallel if rollout.starts_servers else 0


def num_local(config: Config, num_gpus: int) -> int:
    """Processes on this machine; by default one for each GPU that no vLLM server uses.

    num_gpus: GPUs of this machine that the run may use.
    """
    return config.train.n_gpus or max(1, num_gpus - num_served(config))


def fit_to_env(resolved: Resolved, ranks: RankEnv | None, env: Mapping[str, str]) -> Resolved:
    """The settings with the number of nodes of the launcher, or else of the scheduler.

    Raises: LaunchError if the settings contradict it.
    """
    if ranks is not None:
        check_ranks(resolved, ranks)
        return _fit_to_ranks(resolved, ranks)
    found, nnodes = find_node(env), resolved.config.train.nnodes
    if found is None or found.nnodes == nnodes:
        return resolved
    if resolved.sources["train.nnodes"] == "default":
        origin = f"env {found.counted_by}"
        return resolved.override({"train.nnodes": found.nnodes}, origin=origin)
    where = resolved.where("train.nnodes")
    if nnodes == 1 and (found.is_pod or is_slurm_task(env)):
        raise LaunchError(
            f"{found.scheduler} started this on {found.nnodes} nodes, but {where}: each node "
            "would train a model of its own. Unset NNODES, or start one node."
        )
    return resolved.with_notes(
        f"{found.scheduler} gave this job {found.nnodes} nodes, but {where} is used."
    )


def _fit_to_ranks(resolved: Resolved, ranks: RankEnv) -> Resolved:
    is_whole = ranks.num_nodes in (None, resolved.config.train.nnodes)
    if not is_whole:
        origin = f"{ranks.launcher}'s variables"
        resolved = resolved.override({"train.nnodes": ranks.num_nodes}, origin=origin)
    _refuse_servers(resolved, ranks.local_world_size or 1, num_gpus=None)
    if ranks.is_own:  # after the loss of a node, the agent's notes no longer hold
        return resolved.with_notes(*ranks.notes) if is_whole else resolved
    if ranks.world_size == 1:
        return resolved
    return resolved.with_notes(
        f"{ranks.world_size} processes train together, started by {ranks.launcher}."
    )


def check_ranks(resolved: Resolved, ranks: RankEnv) -> None:
    """Raises: LaunchError if the launcher started other numbers than the settings ask for."""
    for key, started, unit in (
        ("train.n_gpus", ranks.local_world_size, "processes on this machine"),
        ("train.nnodes", ranks.num_nodes, "nodes"),
    ):
        is_asked = resolved.sources[key] != "default" and resolved.value(key) is not None
        if is_asked and not ranks.is_own and started not in (None, resolved.value(key)):
            raise LaunchError(
                f"{resolved.where(key)}, but {ranks.launcher} started {started} {unit}: leave the "
                "setting out, or start rlcli without a launcher."
            )


def read_node(config: Config, env: Mapping[str, str]) -> NodeEnv:
    """This node, by NODE_RANK, MASTER_ADDR and MASTER_PORT, or by a scheduler without NODE_RANK.

    Raises: ConfigError for an impossible value.
    """
    nnodes, min_nodes = config.train.nnodes, config.train.min_nodes or config.train.nnodes
    if min_nodes > nnodes:
        raise ConfigError(
            f"train.min_nodes={min_nodes} is more than train.nnodes={nnodes}. "
            "Set NNODES=1:2 for two nodes, of which one may be lost."
        )
    text = text_of(env, "NODE_RANK")
    found = find_node(env)
    if not text and found is not None and found.nnodes == nnodes:
        return replace(found, min_nodes=min_nodes)
    node_rank = number_in(env, "NODE_RANK") if text else 0
    if node_rank is None or node_rank >= nnodes:
        raise ConfigError(
            f"NODE_RANK={text} (environment) is out of range: train.nnodes is {nnodes}. Set NNODES "
            "to the number of nodes, and NODE_RANK from 0 to one less, different on every node."
        )
    return NodeEnv(
        nnodes=nnodes,
        min_nodes=min_nodes,
        node_rank=node_rank,
        master_addr=read_address(env),
        master_port=read_port(env),
    )


def check_processes(
    resolved: Resolved,
    env: Mapping[str, str],
    *,
    num_processes: int,
    num_visible_gpus: int | None,
    num_cores: int,
) -> list[str]:
    """Notes on how many processes train, and on unused settings and GPUs.

    num_processes: on this machine. num_visible_gpus: None if they were not counted.

    Raises: LaunchError if they cannot find each other, or this machine is too small for them.
    """
    train, node = resolved.config.train, read_node(resolved.config, env)
    notes: list[str] = []
    if train.nnodes > 1 and not node.master_addr:
        raise LaunchError(
            f"{resolved.where('train.nnodes')}, but MASTER_ADDR is not set, so the nodes cannot "
            "find each other. Start every node, with NODE_RANK=1 on the next:\n"
            f"NNODES={train.nnodes} NODE_RANK=0 MASTER_ADDR=192.168.1.1 ./train.sh\n"
            "or set NNODES=1 to train on this machine alone."
        )
    given = [f"env {name}" for name in ("NODE_RANK", "MASTER_ADDR") if text_of(env, name)]
    if train.nnodes == 1 and given:
        notes.append(f"not used: {', '.join(given)} (train.nnodes is 1; set NNODES).")
    if node.scheduler:
        notes.append(
            f"{node.scheduler}: this is node {node.node_rank} of {node.nnodes}, "
            f"node 0 is {node.master_addr}."
        )
    num_gpus = num_visible_gpus if train.device in ("auto", "cuda") else 0
    _refuse_servers(resolved, num_processes, num_gpus=num_gpus)
    _refuse_too_many(resolved, num_processes, num_gpus=num_gpus, num_cores=num_cores)
    left = max(0, (num_gpus or 0) - num_served(resolved.config))
    return notes + _counts(resolved, num_processes, num_gpus=left, num_cores=num_cores)


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
            f"of this machine.\nSet N_GPUS={max(1, num_gpus - served)}, lower rollout.replicas, "
            "or use rollout.engine=vllm, which shares them."
        )


def _refuse_too_many(
    resolved: Resolved, here: int, *, num_gpus: int | None, num_cores: int
) -> None:
    """num_gpus: None if they were not counted."""
    where, most = resolved.where("train.n_gpus"), MOST_PER_CORE * num_cores
    if resolved.config.train.n_gpus is None:
        if num_gpus is not None and here > max(1, num_gpus):
            raise LaunchError(
                f"nvidia-smi shows {here} GPUs, but torch finds {num_gpus}.\n"
                f"rlcli doctor says why. Until that is mended, set N_GPUS={max(1, num_gpus)}."
            )
    elif num_gpus and here > num_gpus:
        raise LaunchError(
            f"{where}, but this machine shows {num_gpus}.\n"
            f"Set N_GPUS={num_gpus}, or see CUDA_VISIBLE_DEVICES and rlcli doctor."
        )
    elif num_gpus == 0 and here > most:
        raise LaunchError(
            f"{where}, but without GPUs this machine takes {most} processes at most, "
            f"{MOST_PER_CORE} for each of {num_cores} cores.\n"
            f"Set N_GPUS={num_cores}, or see CUDA_VISIBLE_DEVICES and rlcli doctor."
        )


def _counts(resolved: Resolved, here: int, *, num_gpus: int, num_cores: int) -> list[str]:
    """num_gpus: GPUs that the processes may use."""
    nnodes = resolved.config.train.nnodes
    notes: list[str] = []
    if here * nnodes > 1:
        device = "on a GPU each" if num_gpus else "on the CPU"
        spread = f"{nnodes} nodes x {here}" if nnodes > 1 else here
        notes.append(f"{spread} processes train together, {device}.")
    if resolved.config.train.n_gpus is None and num_gpus > 1:
        notes.append(
            f"all {num_gpus} GPUs are used, as train.n_gpus is not set. N_GPUS=1 uses one."
            if here == num_gpus
            else f"this run uses {here} of {num_gpus} GPUs: nvidia-smi does not show the others. "
            f"--n_gpus {num_gpus} trains on all of them."
        )
    if not num_gpus and 1 < here > num_cores:
        notes.append(f"more processes ({here}) than cores ({num_cores}): fewer are faster.")
    return notes
