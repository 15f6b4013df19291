"""Checks of the GPUs: as seen by the driver and by torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rlcli.config.resolved import Resolved
from rlcli.distributed.process_count import num_local
from rlcli.doctor.packages import TORCH, pip
from rlcli.errors import DeviceNotFoundError
from rlcli.system.finding import Finding
from rlcli.system.hardware import Gpu, ask_driver, visible_gpus
from rlcli.system.packages import installed

TORCH_LIMIT_S = 60.0
BUSY_SHARE = 0.1
ASK_TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    said = [str(w.message) for w in caught]
    said = [text for text in said if "driver" in text or "CUDA" in text]
print(json.dumps({"seen": seen, "cuda": torch.version.cuda or torch.version.hip, "said": said[:1]}))
"""


def count_gpus(device: str, env: Mapping[str, str]) -> int:
    """Number of GPUs that train.device allows on this machine, counted without torch."""
    torch = installed(("torch",)).get("torch")
    if device not in ("auto", "cuda") or torch is None or torch.build == "cpu":
        return 0
    gpus, _ = ask_driver()
    return len(visible_gpus(gpus, env))


def num_gpus_of_several(resolved: Resolved, env: Mapping[str, str]) -> int | None:
    """GPUs here for a run that needs several processes; None if it needs one.

    Raises: DeviceNotFoundError as `check_gpus_usable`.
    """
    train = resolved.config.train
    if train.n_gpus == train.nnodes == 1:
        return None  # nvidia-smi may take a second to answer
    num_gpus = count_gpus(train.device, env)
    if num_local(resolved.config, num_gpus) * train.nnodes <= 1:
        return None
    check_gpus_usable(train.device, env)
    return num_gpus


def check_gpus_usable(device: str, env: Mapping[str, str]) -> None:
    """Raises: DeviceNotFoundError if GPUs are visible but torch, in a child process, sees none.

    On such a machine, only train.device=cpu trains on the CPU.
    """
    gpus = visible_gpus(ask_driver()[0], env) if device in ("auto", "cuda") else []
    if not gpus:
        return
    seen, problem = ask_torch()
    finding = torch_finding(seen, problem, num_gpus=len(gpus))
    if finding.level == "ok":
        return
    count = f"{len(gpus)} x {gpus[0].name}" if len(gpus) > 1 else gpus[0].name
    raise DeviceNotFoundError(
        f"this machine has a GPU ({count}, driver {gpus[0].driver}), but {finding.says}.\n"
        f"Cure: {finding.cure}. To train on the CPU all the same: train.device=cpu."
    )


def gpu_findings(env: Mapping[str, str]) -> list[Finding]:
    """Check the GPUs; torch is started, in a child process, only if there are any."""
    gpus, problem = ask_driver()
    findings = driver_findings(gpus, problem, visible=env.get("CUDA_VISIBLE_DEVICES"))
    if gpus or Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists():
        findings.append(torch_finding(*ask_torch(), num_gpus=len(gpus)))
    return findings


def driver_findings(gpus: list[Gpu], problem: str | None, *, visible: str | None) -> list[Finding]:
    """One line per GPU, and problems with visibility or used memory."""
    if problem is not None:
        cure = "nvidia-smi has to work first: reinstall the driver or restart the machine"
        return [Finding("gpu", "warn", problem, cure)]
    findings = []
    for index, gpu in enumerate(gpus):
        says = f"{gpu.name}, {gpu.total_mib / 1024:.0f} GiB, driver {gpu.driver}"
        if gpu.used_mib > BUSY_SHARE * gpu.total_mib:
            says += f"; {gpu.used_mib / 1024:.0f} GiB are in use by other processes"
            cure = "nvidia-smi names them; CUDA_VISIBLE_DEVICES chooses another GPU"
            findings.append(Finding(f"gpu {index}", "warn", says, cure))
        else:
            findings.append(Finding(f"gpu {index}", "ok", says))
    if not gpus:
        says = "no NVIDIA GPU (nvidia-smi not found): training runs on the CPU, for small models"
        findings.append(Finding("gpu", "warn", says))
    elif visible is not None and not visible_gpus(gpus, {"CUDA_VISIBLE_DEVICES": visible}):
        says = f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
        findings.append(Finding("gpu", "warn", says, "unset CUDA_VISIBLE_DEVICES"))
    elif visible is not None:
        findings.append(Finding("gpu", "ok", f"CUDA_VISIBLE_DEVICES={visible}"))
    return findings


def ask_torch() -> tuple[dict[str, object], str | None]:
    """(torch's view of the GPUs, reason if it could not be determined)."""
    command = [sys.executable, "-c", ASK_TORCH]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=TORCH_LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return {}, f"importing torch takes longer than {TORCH_LIMIT_S:g} s"
    try:
        return json.loads(answer.stdout), None
    except ValueError:
        last = answer.stderr.strip().rsplit("\n", 1)[-1]
        return {}, last or f"torch cannot be imported (exit code {answer.returncode})"


def torch_finding(seen: Mapping[str, object], problem: str | None, *, num_gpus: int) -> Finding:
    """Whether torch can use the GPUs that the driver lists."""
    name = "torch and gpu"
    if problem is not None:
        cure = "python -c 'import torch' shows the whole error"
        return Finding(name, "bad", f"torch cannot be imported: {problem}", cure)
    num_seen = seen["seen"]
    if num_seen:
        return Finding(
            name, "ok", f"torch sees {num_seen} of {num_gpus or num_seen} (CUDA {seen['cuda']})"
        )
    if seen["cuda"] is None:
        cure = f"{pip()} install --force-reinstall torch=={TORCH}"
        says = "torch sees no GPU: it is a CPU build (PyPI's Linux build has CUDA)"
        return Finding(name, "warn", says, cure)
    said = seen["said"]
    why = str(said[0]).split(".")[0] if isinstance(said, list) and said else "no reason given"
    cure = "a newer driver, or a torch built for this driver's CUDA"
    return Finding(name, "warn", f"torch (CUDA {seen['cuda']}) sees no GPU: {why}", cure)
