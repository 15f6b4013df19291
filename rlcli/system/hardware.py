"""RAM, cores and GPUs (from nvidia-smi) that this process may use."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
OOM_SCORE = 500
"""OOM score adjustment (of 1000): higher is killed sooner."""
KEPT_BLOCK, KEPT_END = 2**25, 2**30
KERNELS = 128
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Constants from glibc's malloc.h."""
QUERY = "name,memory.total,memory.used,driver_version"
SMI_LIMIT_S = 10.0
PR_SET_PDEATHSIG = 1
CGROUP = Path("/sys/fs/cgroup")
MEMORY_LIMITS = {
    "memory.max": ("memory.current", "memory.stat", "inactive_file"),
    "memory/memory.limit_in_bytes": (
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
}
"""Container limit under cgroup 2 and 1 -> usage file, statistics file and its cache key."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One line of nvidia-smi. Memory in MiB; 0 if unknown."""

    name: str
    total_mib: int
    used_mib: int
    driver: str

    @property
    def memory_gib(self) -> float | None:
        """Total memory; None if nvidia-smi does not report it."""
        return self.total_mib / 1024 if self.total_mib else None


def ask_driver() -> tuple[list[Gpu], str | None]:
    """(GPUs, problem with the driver). A missing nvidia-smi is no problem."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return [], None
    asked = [command, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=SMI_LIMIT_S)
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi does not answer within {SMI_LIMIT_S:g} s"
    except OSError as error:
        return [], f"nvidia-smi cannot be started: {error.strerror}"
    if answer.returncode:
        lines = (answer.stdout + answer.stderr).split("\n")
        return [], next((line for line in lines if line.strip()), "nvidia-smi failed")
    return parse_driver(answer.stdout), None


def parse_driver(text: str) -> list[Gpu]:
    """Parse nvidia-smi's CSV; unknown numbers become 0."""
    gpus = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 3)]
        if len(parts) == 4:
            total, used = (int(part) if part.isdigit() else 0 for part in parts[1:3])
            gpus.append(Gpu(parts[0], total, used, parts[3]))
    return gpus


def visible_gpus(gpus: Sequence[Gpu], env: Mapping[str, str]) -> list[Gpu]:
    """The GPUs in CUDA_VISIBLE_DEVICES, up to the first invalid name, as in CUDA.

    Ids (GPU-..., MIG-...) are not resolved; each counts as the next GPU.
    """
    text = env.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return [*gpus]
    found: list[Gpu] = []
    for name in (part.strip() for part in text.split(",")):
        if name.isdecimal() and int(name) < len(gpus):
            found.append(gpus[int(name)])
        elif name.startswith(("GPU-", "MIG-")) and len(found) < len(gpus):
            found.append(gpus[len(found)])
        else:
            break
    return found


def total_ram() -> int:
    """Total bytes of RAM, or the container's limit."""
    import psutil

    return min([psutil.virtual_memory().total, *_limits().values()])


def free_ram() -> int:
    """Bytes of RAM available without swapping, within the container's limit."""
    import psutil

    shares = (max(0, limit - _used(*MEMORY_LIMITS[name])) for name, limit in _limits().items())
    return min([psutil.virtual_memory().available, *shares])


def memory_swing() -> int:
    """Bytes between this process's peak RAM and its current RAM."""
    import psutil

    unit = 1 if sys.platform == "darwin" else 1024
    worst = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(0, worst - psutil.Process().memory_info().rss)


def allowed_cores() -> int:
    """Number of cores allowed by affinity and the container's limit."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota, _, period = _read("cpu.max").strip().partition(" ")
    share = int(quota) // int(period) if quota.isdecimal() and period.isdecimal() else cores
    return max(1, min(cores, share))


def usable_cores() -> int:
    """Number of useful compute threads: the allowed cores, at most the physical ones."""
    import psutil

    allowed = allowed_cores()
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def die_with_parent() -> None:
    """Make the kernel kill this process when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def be_killed_first() -> None:
    """Make the OOM killer choose this process first, so that a run keeps its trainer."""
    with suppress(OSError, ValueError):
        file = Path("/proc/self/oom_score_adj")
        file.write_text(str(max(OOM_SCORE, int(file.read_text()))))


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory instead of returning it and requesting zeroed pages.

    Blocks up to KEPT_BLOCK bytes, glibc's maximum, come from the heap; its free end is
    returned only beyond KEPT_END bytes.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, KEPT_BLOCK)
        set_option(M_TRIM_THRESHOLD, KEPT_END)


def limit_kernels() -> None:
    """Limit oneDNN's cache to KERNELS kernels: each is for one shape and takes half a MiB."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))


def _limits() -> dict[str, int]:
    found: dict[str, int] = {}
    for name in MEMORY_LIMITS:
        text = _read(name).strip()
        if text.isdecimal():
            found[name] = int(text)
    return found


def _used(usage: str, stat: str, key: str) -> int:
    """Bytes that a container uses, without file cache; 0 if unknown."""
    used = _read(usage).strip()
    counts = dict(line.rsplit(" ", 1) for line in _read(stat).splitlines() if " " in line)
    return int(used) - int(counts.get(key, 0)) if used.isdecimal() else 0


def _read(name: str) -> str:
    try:
        return (CGROUP / name).read_text()
    except OSError:
        return ""
