"""Start vLLM servers: the command, and servers that rlcli runs itself."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import rlcli
from rlcli.distributed.rank_env import LOOPBACK, TORCH
from rlcli.rollout.vllm.client import Address
from rlcli.rollout.vllm.engine import RECEIVER, VllmSettings, logprobs_mode, room_for

LOG = logging.getLogger(__name__)


GUARD = Path(__file__).with_name("guard.py")
END_LIMIT_S = 4.0
TICK_S = 0.05
LAST_BYTES, LAST_LINES, LINE_LIMIT = 32768, 3, 200
"""Limits for quoting a log: bytes, lines, and characters per line."""
ERROR = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception): \S.*)")
POINTERS = ("See root cause above", "See stack trace (above)")
"""Text of errors that are shown only if there is no other."""
NOISE = ("nanobind", "leaked", " WARNING ", "Warning:", "warnings.warn")
"""Text of lines that never explain why a server ended."""


def served_command(settings: VllmSettings, *, host: str, port: int) -> list[str]:
    """Arguments, after the Python executable, of a server that rlcli can train with."""
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(settings.model_dir)]
    command += ["--host", host, "--port", str(port)]
    command += ["--worker-extension-cls", RECEIVER]
    command += ["--dtype", settings.dtype, "--max-model-len", str(settings.max_tokens)]
    command += ["--max-num-seqs", str(settings.max_num_seqs)]
    command += ["--logprobs-mode", logprobs_mode(settings), "--generation-config", "vllm"]
    command += ["--enable-prefix-caching", "--disable-log-stats", "--uvicorn-log-level", "warning"]
    if settings.tensor_parallel > 1:
        command += ["--tensor-parallel-size", str(settings.tensor_parallel)]
    if settings.lora_rank:
        room = room_for(settings.lora_rank)
        command += ["--enable-lora", "--max-lora-rank", str(room), "--max-loras", "1"]
    if settings.trust_remote_code:
        command += ["--trust-remote-code"]
    if settings.device == "cpu":
        command += ["--enforce-eager", "--kv-cache-memory-bytes", str(settings.cache_bytes)]
    else:
        command += ["--gpu-memory-utilization", str(settings.memory_fraction)]
    return command


def served_env(settings: VllmSettings) -> dict[str, str]:
    """Environment variables for `served_command`."""
    env = {"VLLM_SERVER_DEV_MODE": "1"}
    if settings.lora_rank:
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return env


def told_command(settings: VllmSettings, address: Address) -> str:
    """The same as a shell command, for the machine of `address`."""
    env = " ".join(f"{name}={value}" for name, value in served_env(settings).items())
    command = ["python", *served_command(settings, host=address.host, port=address.port)]
    return f"{env} {shlex.join(command)}"


class Server:
    """A server that this process starts and that always ends with this process.

    gpus: their names as CUDA knows them. log: what it says, one start after another.
    """

    def __init__(self, settings: VllmSettings, *, gpus: Sequence[str], log: Path) -> None:
        self.settings, self.gpus, self.log = settings, gpus, log
        self.address = Address(LOOPBACK, _free_port())
        self._begin = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server without waiting for it. Raises: OSError."""
        self.kill()
        command = [sys.executable, "-ESs", str(GUARD), str(os.getpid()), sys.executable]
        # the model's files are only read if the trainer does not send these weights
        load = ["--load-format", "auto" if self.settings.lora_rank else "dummy"]
        load += ["--seed", str(self.settings.seed), "--skip-tokenizer-init"]
        address = self.address
        command += served_command(self.settings, host=address.host, port=address.port) + load
        LOG.debug("starting vLLM: %s", " ".join(map(str, command)))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._begin = log.tell()
            self._process = subprocess.Popen(
                command,
                env=self._env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        """Process id of the guard that leads its process group."""
        return None if self._process is None else self._process.pid

    def is_running(self) -> bool:
        """Whether its process runs; its engine may be dead."""
        if self._process is None:
            return False
        try:  # not reaped, so that its pid still names its group
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return ended is None

    def end(self) -> None:
        """Ask the server to exit."""
        if self._process is not None and self.is_running():
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with all processes it started."""
        if self._process is None:
            return
        self.end()
        deadline_s = time.monotonic() + END_LIMIT_S
        while self.is_running() and time.monotonic() < deadline_s:
            time.sleep(TICK_S)
        # the group survives if only its leader was killed
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def last_words(self) -> str:
        """The last error in the log of this start, or its last lines."""
        try:
            with self.log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._begin, end - LAST_BYTES))
                text = log.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        lines = ["".join(filter(str.isprintable, line)).strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not any(words in line for words in NOISE)]
        errors = [error[1] for line in lines if (error := ERROR.search(line))]
        causes = [error for error in errors if not any(words in error for words in POINTERS)]
        said = causes[-1:] or errors[-1:] or lines[-LAST_LINES:]
        return " / ".join(line[:LINE_LIMIT] for line in said)

    def _env(self) -> dict[str, str]:
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in TORCH and not name.startswith("TORCHELASTIC_")
        }
        env.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # the same as for an engine in this process
        env.setdefault("VLLM_NO_USAGE_STATS", "1")
        env.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        # the server's workers import the receiver
        paths = [str(Path(rlcli.__file__).resolve().parents[1]), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return env | served_env(self.settings)


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return listener.getsockname()[1]
