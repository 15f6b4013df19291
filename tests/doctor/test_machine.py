"""GPU, threads, disk, port, hub, sandbox and leftovers: what is said of what was found."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from rlcli.doctor.gpu import driver_findings, torch_finding
from rlcli.doctor.leftovers import Process, leftover_finding, leftover_findings, orphans
from rlcli.doctor.machine import disk_finding, hub_cache, threads_finding
from rlcli.doctor.network import hub_finding, port_finding
from rlcli.doctor.sandbox import namespace_finding, sandbox_finding, sandbox_findings
from rlcli.errors import RewardError
from rlcli.rewards.sandbox import check_sandbox
from rlcli.rewards.sandbox.finding import forbidding
from rlcli.system.hardware import parse_driver
from rlcli.system.network import within

SMI = "NVIDIA H200, 143771, 4, 570.86.15\nNVIDIA, odd name, 81559, 70000, 570.86.15\n"


def test_a_gpu_that_others_fill_is_a_warning() -> None:
    free, full = driver_findings(parse_driver(SMI), None, visible=None)
    assert (free.level, full.level) == ("ok", "warn")
    assert "68 GiB are in use" in full.says


def test_hidden_gpus_and_a_dead_driver_are_warnings() -> None:
    assert driver_findings(parse_driver(SMI), None, visible="")[-1].cure is not None
    assert driver_findings([], "driver/library version mismatch", visible=None)[0].level == "warn"
    assert driver_findings([], None, visible=None)[0].level == "warn"


def test_torch_that_cannot_be_imported_is_bad_and_one_that_sees_no_gpu_a_warning() -> None:
    assert torch_finding({}, "libcudart.so: not found", num_gpus=1).level == "bad"
    cpu = torch_finding({"seen": 0, "cuda": None, "said": []}, None, num_gpus=1)
    assert (cpu.level, "CPU build" in cpu.says) == ("warn", True)
    said = ["The NVIDIA driver on your system is too old (found version 12020). Update it."]
    old = torch_finding({"seen": 0, "cuda": "13.0", "said": said}, None, num_gpus=1)
    assert old.says.endswith("is too old (found version 12020)")
    assert torch_finding({"seen": 8, "cuda": "13.0", "said": []}, None, num_gpus=8).level == "ok"


def test_more_threads_than_cores_are_a_warning_with_the_line() -> None:
    found = threads_finding({"OMP_NUM_THREADS": "8"}, num_cores=2)
    assert (found.level, found.cure) == ("warn", "export OMP_NUM_THREADS=2")
    assert threads_finding({"OMP_NUM_THREADS": "2,1"}, num_cores=2).level == "ok"
    assert threads_finding({"OMP_NUM_THREADS": "many"}, num_cores=2).level == "warn"
    assert threads_finding({}, num_cores=2).level == "ok"


def test_the_cache_is_where_the_hub_library_looks() -> None:
    assert hub_cache({"HF_HUB_CACHE": "/a"}) == Path("/a")
    assert hub_cache({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert hub_cache({}) == Path.home() / ".cache/huggingface/hub"


def test_a_folder_is_judged_by_what_it_would_be_made_in(tmp_path: Path) -> None:
    found = disk_finding("disk", tmp_path / "not" / "there", is_needed=True)
    assert found.level in ("ok", "warn")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_read_only_or_full_is_bad_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert disk_finding("disk", Path("/proc/outputs"), is_needed=True).level == "bad"
    assert disk_finding("disk", Path("/proc/outputs"), is_needed=False).level == "warn"
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=2**30 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nearly_full)
    assert disk_finding("disk", tmp_path, is_needed=True).level == "bad"


def test_a_taken_port_names_its_holder() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = port_finding({"MASTER_PORT": str(port)})
    assert found.level == "warn"
    assert f"{port} is taken by" in found.says
    assert port_finding({"MASTER_PORT": str(port)}).level == "ok"
    assert port_finding({"MASTER_PORT": "x"}).level == "warn"


class _NotFound(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _NotFound) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_mirror_that_answers_anything_is_reached(mirror: str) -> None:
    found = hub_finding({"HF_ENDPOINT": mirror}, limit_s=60.0)
    assert (found.level, found.says) == ("ok", f"{mirror} (HF_ENDPOINT) answers")


def test_a_hub_that_is_silent_is_given_up_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        before_s = time.monotonic()
        found = hub_finding({"HF_ENDPOINT": address}, limit_s=0.2)
    assert found.level == "warn"
    assert time.monotonic() - before_s < 100.0


def test_offline_mode_asks_nobody() -> None:
    assert hub_finding({"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "x"}).level == "ok"
    assert hub_finding({"HF_ENDPOINT": "file:///etc/passwd"}).level == "warn"


def test_within_hands_on_the_answer_the_error_and_the_end_of_patience() -> None:
    assert within(60.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(60.0, lambda: 1 // 0)
    is_over = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.01, is_over.wait)
    is_over.set()


def test_the_kernel_setting_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "unprivileged_userns_clone").write_text("0\n")
    forbidden = forbidding(tmp_path)
    assert forbidden == ["kernel.unprivileged_userns_clone"]
    found = namespace_finding(forbidden, "Operation not permitted")
    assert found.cure == "sudo sysctl kernel.unprivileged_userns_clone=1"
    assert namespace_finding(forbidden, None).level == "ok"
    assert "docker" in (namespace_finding([], "Operation not permitted").cure or "")


def test_the_sandbox_finding_is_what_training_would_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox_finding().cure == "apt-get install bubblewrap"
    broken = tmp_path / "bwrap"
    broken.write_text(
        "#!/bin/sh\n[ $1 = --help ] && echo --disable-userns && exit\n"
        "echo 'bwrap: No permissions to create a namespace' >&2\nexit 1\n"
    )
    for folder in (broken, tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    found = sandbox_finding()
    assert (found.level, "No permissions to create a namespace" in found.says) == ("warn", True)
    with pytest.raises(RewardError) as refused:
        check_sandbox()
    assert found.says.rpartition(": ")[2] in str(refused.value)
    assert found.cure in str(refused.value)


def test_the_sandbox_is_tried_for_real() -> None:
    assert {f.name for f in sandbox_findings()} <= {"user namespaces", "sandbox"}


def process(pid: int, parent: int, command: str, name: str = "python") -> Process:
    return Process(pid=pid, parent=parent, name=name, command=command)


def test_workers_without_a_run_and_workers_below_them_are_leftovers() -> None:
    every = [
        process(10, 1, "python -m rlcli.cli.main train"),
        process(11, 10, "python -P -m rlcli.rewards.worker 10 5 rules"),
        process(20, 1, "python -P -m rlcli.rewards.worker 19 5 rules"),
        process(30, 1, "VLLM::EngineCore"),
        process(31, 30, "VLLM::Worker_TP0"),
        process(40, 9, "python -m vllm.entrypoints.openai.api_server"),
        process(50, 1, "python -m deepspeed.launcher.launch --nnodes 1"),
        process(60, 1, "vim notes about rlcli rewards worker"),
    ]
    assert [p.pid for p in orphans(every, {1})] == [20, 30, 31, 50]
    found = leftover_finding(orphans(every, {1}))
    assert found.level == "warn"
    assert found.cure == "if you do not need them: kill 20 30 31 50"
    assert "20 (rlcli.rewards.worker, 0 s old)" in found.says


def test_an_orphan_of_this_machine_is_found() -> None:
    sleeper = f"{sys.executable} -c 'import time; time.sleep(600)' rlcli.rewards.worker"
    shell = ["sh", "-c", f"{sleeper} >/dev/null 2>&1 & echo $!"]
    pid = int(subprocess.run(shell, capture_output=True, text=True, check=True).stdout)
    orphan = psutil.Process(pid)
    try:
        wait_until(lambda: orphan.cmdline()[:1] == [sys.executable])
        if orphan.ppid() != 1:
            pytest.skip("orphans go to another process than 1 here")
        (found,) = leftover_findings()
        assert str(pid) in found.says
    finally:
        orphan.kill()
