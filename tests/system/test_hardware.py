"""What a process may use of the machine is the same for plan, recommend and doctor."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rlcli.cli.recommend import find_situation_machine
from rlcli.config.schema import Config
from rlcli.doctor.machine import memory_findings
from rlcli.plan.machine import find_machine
from rlcli.system import hardware
from rlcli.system.hardware import (
    Gpu,
    free_ram,
    memory_swing,
    parse_driver,
    total_ram,
    usable_cores,
    visible_gpus,
)

SMI = "NVIDIA H200, 143771, 4, 570.86.15\nNVIDIA, odd name, 81559, 70000, 570.86.15\n"


def test_nvidia_smi_is_read_line_by_line() -> None:
    first, second = parse_driver(SMI)
    assert first == Gpu("NVIDIA H200", 143771, 4, "570.86.15")
    assert second.name == "NVIDIA, odd name"
    unknown = parse_driver("GB10, [N/A], [N/A], 580.1\n")[0]
    assert (unknown.total_mib, unknown.memory_gib) == (0, None)
    assert parse_driver("No devices were found\n") == []


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [0, 1]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", [1]),
        ("1, 0", [1, 0]),
        ("0,7,1", [0]),  # CUDA stops at the first name that is none
        ("0,-1,1", [0]),
        ("GPU-1d2c", [0]),
        ("GPU-1,GPU-2,GPU-3", [0, 1]),
    ],
)
def test_the_environment_hides_gpus_as_for_cuda(visible: str | None, seen: list[int]) -> None:
    gpus = parse_driver(SMI)
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert visible_gpus(gpus, env) == [gpus[index] for index in seen]


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_plan_recommend_and_doctor_keep_to_the_share_of_a_container(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    file.write_text("max\n")
    assert total_ram() == psutil.virtual_memory().total
    file.write_text(f"{2**30}\n")
    assert total_ram() == 2**30
    assert find_machine(Config().train).memory_gib == 1.0
    assert find_situation_machine(None, None).memory_gib == 1.0
    assert memory_findings()[0].says.endswith("of 1.0 GiB free")


@pytest.mark.parametrize(
    ("folder", "limit", "usage", "cache"),
    [
        (".", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_what_a_container_uses_is_not_free_but_its_file_cache_is(
    folder: str, limit: str, usage: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / limit).write_text("9000\n")
    assert free_ram() == 9000
    (tmp_path / folder / usage).write_text("7000\n")
    assert free_ram() == 2000
    (tmp_path / folder / "memory.stat").write_text(f"anon 1\n{cache} 500\nactive_file 3\n")
    assert free_ram() == 2500
    (tmp_path / folder / usage).write_text("9800\n")
    assert free_ram() == 0


def test_memory_that_was_given_back_counts_as_swing() -> None:
    size = 2**26
    block = mmap.mmap(-1, memory_swing() + size)  # the allocator might keep it
    block.write(b"x" * len(block))
    before = memory_swing()
    block.close()
    assert memory_swing() - before > size * 0.9


def test_plan_and_recommend_count_the_same_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho A, 81920, 0, 1\necho B, 24576, 0, 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    planned, advised = find_machine(Config().train), find_situation_machine(None, None)
    assert (planned.devices, planned.memory_gib) == (advised.gpus, advised.memory_gib) == (1, 24.0)


def test_cores_are_physical_allowed_and_within_the_containers_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert usable_cores() == 8
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert usable_cores() == 2
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert usable_cores() == 1
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_memory_that_was_freed_is_used_again_without_the_kernel() -> None:
    """In a process of its own: the option stays."""
    code = """
import ctypes, resource, sys
from rlcli.system.hardware import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def fill_and_free():
    blocks = [libc.malloc(4 << 20) for _ in range(30)]
    for block in blocks:
        libc.memset(block, 1, 4 << 20)
    for block in blocks:
        libc.free(block)
fill_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", code, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("kept", "plain")
    }
    assert faults["kept"] < 0.3 * faults["plain"]
