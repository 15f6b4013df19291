"""Which engines sample and train, and whether this version has them."""

from __future__ import annotations

import os
from importlib.util import find_spec

from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.distributed.process_count import num_local
from rlcli.errors import ConfigError
from rlcli.setup.checks.algorithm import cuts
from rlcli.system.hardware import ask_driver, visible_gpus

SAMPLER = "rollout.engine"
URL = "rollout.url"
AHEAD = "rollout.async_steps"
CORRECTION = "algorithm.correction"
ENGINE = "train.engine"
OFFLOADS = ("train.offload_params", "train.offload_optimizer")


def resolve_address(resolved: Resolved) -> Resolved:
    """`resolved` with the vLLM server as sampler where only its address was given.

    Raises:
        ConfigError: an address beside another sampler, or none of a server.
    """
    rollout = resolved.config.rollout
    if rollout.url is None:
        return resolved
    if rollout.engine != "vllm_server" and SAMPLER in resolved.explicit:
        raise ConfigError(
            f"{resolved.where(URL)} is the address of a vLLM server, which "
            f"{resolved.where(SAMPLER)} does not use.\n"
            f"Use {SAMPLER}=vllm_server, or remove the address."
        )
    _check_addresses(resolved, rollout.url)
    if rollout.engine == "vllm_server":
        return resolved
    origin = resolved.sources[URL]
    note = f"{origin} turns {SAMPLER} to vllm_server."
    return resolved.override({SAMPLER: "vllm_server"}, note=note, origin=origin)


def _check_addresses(resolved: Resolved, urls: str) -> None:
    """Their form alone; whether a server answers there is seen when the run begins."""
    from rlcli.rollout.vllm.client import address_of

    for url in urls.split(","):
        try:
            address_of(url)
        except ConfigError:
            raise ConfigError(
                f"{resolved.where(URL)} is no address of a vLLM server.\n"
                "Expected http://HOST:PORT, several with commas."
            ) from None


def resolve_async(resolved: Resolved) -> Resolved:
    """`resolved` with rollouts that are a step old corrected for, or no step sampled ahead."""
    algorithm, origin = resolved.config.algorithm, resolved.sources[AHEAD]
    if not resolved.config.rollout.async_steps:
        return resolved
    if found := _nothing_ahead(resolved.config):
        key, reason = found
        note = f"not used: {AHEAD} ({reason})."
        return resolved.override({AHEAD: 0}, note=note, origin=resolved.sources[key])
    if algorithm.correction != "auto":
        return resolved
    if (
        algorithm.use_rollout_logprobs
        or cuts(resolved, "rollout.top_p")
        or cuts(resolved, "rollout.top_k")
    ):
        return resolved.override({CORRECTION: "off"}, origin=origin)
    note = (
        f"{origin} turns {CORRECTION} to token: rollouts are a step older than the policy that "
        "learns from them."
    )
    return resolved.override({CORRECTION: "token"}, note=note, origin=origin)


def _nothing_ahead(config: Config) -> tuple[str, str] | None:
    """The setting under which no step can be sampled before the last one is done, and why."""
    run = config.run
    if run.save_every == 1:
        return "run.save_every", "run.save_every is 1: nothing is sampled ahead of a checkpoint"
    if run.eval_every == 1 and config.data.val:
        return "run.eval_every", "run.eval_every is 1: nothing is sampled ahead of an evaluation"
    if config.train.max_steps == 1:
        return "train.max_steps", "train.max_steps is 1: no step follows"
    return None


def resolve_sharding(resolved: Resolved) -> Resolved:
    """Choose the fsdp engine for several processes if offloading is on and the engine is auto."""
    train = resolved.config.train
    asked = next((key for key in OFFLOADS if resolved.value(key)), None)
    if train.engine != "auto" or asked is None or _num_processes(resolved.config) == 1:
        return resolved
    note = f"{resolved.where(asked)} turns {ENGINE} to fsdp."
    return resolved.override({ENGINE: "fsdp"}, note=note, origin=resolved.sources[asked])


def _num_processes(config: Config) -> int:
    train = config.train
    if train.n_gpus is None and train.device in ("auto", "cuda"):
        gpus = len(visible_gpus(ask_driver()[0], os.environ))
        return num_local(config, gpus) * train.nnodes
    return (train.n_gpus or 1) * train.nnodes


def check_engines(resolved: Resolved) -> Resolved:
    """`resolved`, when this version and this machine can train it.

    `check` leaves this out, so that other engines can be planned for.

    Raises:
        ConfigError: an engine that is not in this version.
    """
    config = resolved.config
    if config.train.engine == "deepspeed" and find_spec("deepspeed") is None:
        raise ConfigError(
            f"{resolved.where('train.engine')} needs the package deepspeed, which is not installed."
            "\nInstall it with: pip install 'rlcli[deepspeed]' (from a checkout: "
            "pip install -e '.[deepspeed]'), or use --engine torch."
        )
    if config.train.engine in ("deepspeed", "fsdp") and config.model.compile:
        raise ConfigError(
            f"{resolved.where('model.compile')} and {resolved.where('train.engine')} do not go "
            "together in this version. Leave one of them out."
        )
    return resolved
