"""Checks of memory, cores, threads and disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rlcli.system.finding import Finding
from rlcli.system.hardware import allowed_cores, free_ram, total_ram

GIB = 2**30
LEAST_DISK_GIB = 1.0
"""Below this, even a tiny run cannot save."""
GOOD_DISK_GIB = 20.0
"""Three checkpoints of a 0.5B model with its optimizer."""
GOOD_MEMORY_GIB = 4.0


def machine_findings(env: Mapping[str, str], cwd: Path) -> list[Finding]:
    """RAM, cores and thread settings, then the two folders a run writes to."""
    cache = hub_cache(env)
    return [
        *memory_findings(),
        threads_finding(env, num_cores=allowed_cores()),
        disk_finding("disk: outputs", cwd / "outputs", is_needed=True),
        disk_finding("disk: models", cache, is_needed=False),
    ]


def memory_findings() -> list[Finding]:
    """Free RAM and usable cores."""
    try:
        import psutil
    except ImportError:
        return []  # reported among the packages
    total, free = total_ram() / GIB, free_ram() / GIB
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    says = f"{free:.1f} of {total:.1f} GiB free"
    cores = f"{physical} physical, {allowed_cores()} usable by this process"
    if free < GOOD_MEMORY_GIB:
        cure = "close what else runs here; a 0.5B model wants about 10 GiB to train"
        return [Finding("ram", "warn", says, cure), Finding("cores", "ok", cores)]
    return [Finding("ram", "ok", says), Finding("cores", "ok", cores)]


def threads_finding(env: Mapping[str, str], *, num_cores: int) -> Finding:
    """Whether OMP_NUM_THREADS fits the cores."""
    text = env.get("OMP_NUM_THREADS", "").strip()
    if not text:
        return Finding("threads", "ok", "OMP_NUM_THREADS is not set: one thread a core")
    first = text.split(",")[0]
    if not first.isdigit() or int(first) == 0:
        says = f"OMP_NUM_THREADS={text} is no number of threads"
        return Finding("threads", "warn", says, f"export OMP_NUM_THREADS={num_cores}")
    if int(first) > num_cores:
        says = f"OMP_NUM_THREADS={text} on {num_cores} cores: threads wait for each other"
        return Finding("threads", "warn", says, f"export OMP_NUM_THREADS={num_cores}")
    return Finding("threads", "ok", f"OMP_NUM_THREADS={text}")


def hub_cache(env: Mapping[str, str]) -> Path:
    """Folder in which huggingface_hub caches models."""
    if env.get("HF_HUB_CACHE"):
        return Path(os.path.expanduser(env["HF_HUB_CACHE"]))
    home = env.get("HF_HOME")
    if not home:
        home = os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(home)) / "hub"


def disk_finding(name: str, folder: Path, *, is_needed: bool) -> Finding:
    """Whether `folder`, or its nearest existing parent, is writable and has free space."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    trouble = "bad" if is_needed else "warn"
    elsewhere = "--output_dir on another disk" if is_needed else "export HF_HOME=/another/disk"
    try:
        with tempfile.TemporaryFile(dir=existing) as scratch:
            scratch.write(b"rlcli")
        free_gib = shutil.disk_usage(existing).free / GIB
    except OSError as error:
        return Finding(name, trouble, f"{folder} cannot be written: {error.strerror}", elsewhere)
    says = f"{free_gib:,.1f} GiB free for {folder}"
    if free_gib < LEAST_DISK_GIB:
        return Finding(name, trouble, says, elsewhere)
    if free_gib < GOOD_DISK_GIB:
        return Finding(name, "warn", f"{says}: little for models of 0.5B and more", elsewhere)
    return Finding(name, "ok", says)
