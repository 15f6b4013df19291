"""Which sampler a run has on this machine, and what is corrected for because of it."""

from __future__ import annotations

from rlcli.config.resolved import Resolved
from rlcli.errors import ConfigError
from rlcli.preflight.algorithm import cuts
from rlcli.rollout.vllm.versions import KNOWN, installed_version, is_known

SAMPLER = "rollout.engine"
CORRECTION = "algorithm.correction"
OF_VLLM = (SAMPLER, "rollout.memory_fraction", "rollout.tensor_parallel")
INSTALL = "pip install 'rlcli[vllm]' (from a checkout: pip install -e '.[vllm]')"
INSTALL_ON_CPU = "scripts/install_vllm_cpu.sh"


def settle_sampler(resolved: Resolved, *, is_cuda: bool) -> Resolved:
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
    _check_cuts(resolved)
    return _correct(resolved)


def _choose(resolved: Resolved, version: str | None, *, is_cuda: bool) -> Resolved:
    """What auto means here; without a GPU the native sampler, of which nothing need be said."""
    if not is_cuda:
        return _native(resolved, "the native sampler samples on the CPU")
    if version is None:
        return resolved.tell(
            f"{SAMPLER}=auto: the native sampler samples, as vllm is not installed. It is faster "
            f"on a GPU: {INSTALL}."
        )
    if not is_known(version):
        return resolved.tell(
            f"{SAMPLER}=auto: the native sampler samples, as vllm {version} is not one of {KNOWN}."
        )
    if _lacks_logprobs(resolved):
        return resolved.tell(
            f"{SAMPLER}=auto: the native sampler samples, as vLLM has no log-probs from before "
            "top_p and top_k."
        )
    note = f"{SAMPLER}=auto: vllm {version} samples, as it is installed and there is a GPU."
    return _correct(resolved.adjust({SAMPLER: "vllm"}, note=note, origin="this machine"))


def _native(resolved: Resolved, reason: str) -> Resolved:
    is_auto = resolved.config.rollout.engine == "auto"
    asked = [key for key in OF_VLLM if key in resolved.explicit]
    unread = [key for key in asked if not (is_auto and key == SAMPLER)]
    if unread:
        resolved = resolved.tell(f"not used: {', '.join(unread)} ({reason}).")
    return resolved if is_auto else resolved.adjust({SAMPLER: "native"})


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


def _check_cuts(resolved: Resolved) -> None:
    if _lacks_logprobs(resolved):
        key = next(key for key in ("rollout.top_p", "rollout.top_k") if cuts(resolved, key))
        raise ConfigError(
            f"{resolved.where(key)} at {resolved.where('rollout.temperature')}: vLLM then gives "
            "log-probs of the cut distribution only.\n"
            f"Use rollout.temperature=1.0, leave {key} out, or use {SAMPLER}=native."
        )


def _lacks_logprobs(resolved: Resolved) -> bool:
    """Whether vLLM could not say how likely a token was before the cut."""
    is_cut = cuts(resolved, "rollout.top_p") or cuts(resolved, "rollout.top_k")
    return is_cut and resolved.config.rollout.temperature != 1.0


def _correct(resolved: Resolved) -> Resolved:
    """Two engines never agree to the last digit: their gap is corrected for unless it cannot be."""
    algorithm = resolved.config.algorithm
    if algorithm.correction != "auto":
        return resolved
    is_cut = cuts(resolved, "rollout.top_p") or cuts(resolved, "rollout.top_k")
    if algorithm.bypass or is_cut:
        return resolved.adjust({CORRECTION: "off"}, origin=resolved.sources[SAMPLER])
    return resolved.adjust({CORRECTION: "token"}, origin=resolved.sources[SAMPLER])
