"""vLLM servers beside the trainer: given its weights over a socket, asked over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from engine_parts import config, make_engine
from vllm_parts import (
    EOS,
    check_how_rollouts_end,
    check_is_the_trainers,
    check_what_draws_depend_on,
    move,
    prompts,
    save_model,
    tokens,
)

from rlcli.errors import ConfigError, SamplerError
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.vllm import inflight_requests
from rlcli.rollout.vllm.client import Address, address_of
from rlcli.rollout.vllm.engine import VllmSettings
from rlcli.rollout.vllm.replica import Replica
from rlcli.rollout.vllm.server_sampler import (
    ServerSampler,
    for_server,
    join_replicas,
    start_replicas,
)
from rlcli.terminal.logs import collected
from rlcli.types import Rollout

pytestmark = pytest.mark.nightly  # test_vllm_runs.py has a served run
PARAMS = SamplingParams(n=3, max_tokens=24)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, SimpleNamespace]]:
    """Torch engines, each with a server that has its weights: whole ones, or adapters."""
    from transformers import AutoTokenizer

    made: dict[str, SimpleNamespace] = {}
    for name, changes in {"whole": {}, "lora": {"lora__rank": 4, "lora__alpha": 8.0}}.items():
        folder = save_model(tmp_path_factory.mktemp(name))
        settings = config(**changes)
        wanted = wanted_of(folder, lora_rank=settings.lora.rank)
        engine = make_engine(folder, settings)
        made[name] = SimpleNamespace(engine=engine, config=settings, settings=wanted)

    def start(pair: SimpleNamespace) -> list[Replica]:
        return start_replicas(pair.settings, [[]], run_dir=pair.settings.model_dir / "run")

    with ThreadPoolExecutor() as pool:
        started = list(pool.map(start, made.values()))
    for pair, replicas in zip(made.values(), started, strict=True):
        pair.sampler = ServerSampler(
            replicas,
            AutoTokenizer.from_pretrained(pair.settings.model_dir),
            eos_token_ids=EOS,
            lora_alpha=pair.config.lora.alpha,
            weights=pair.engine.weights,
        )
        pair.sampler.load_weights(pair.engine.weights(), version=0)
    yield made
    for pair in made.values():
        pair.sampler.close()


@pytest.fixture
def pair(pairs: dict[str, SimpleNamespace]) -> SimpleNamespace:
    return pairs["whole"]


def wanted_of(folder: Path, **changes: Any) -> VllmSettings:
    wanted: dict[str, Any] = {
        "model_dir": folder,
        "dtype": "float32",
        "device": "cpu",
        "max_tokens": 96,
        "max_num_seqs": 32,
        "temperature": 1.0,
    }
    return VllmSettings(**(wanted | changes))


def test_after_each_update_it_is_the_trainers_policy(pair: SimpleNamespace) -> None:
    before = tokens(pair.sampler.generate(prompts(), PARAMS, seed=9))
    for version in (1, 2, 3):
        move(pair.engine, seed=version)
        pair.sampler.load_weights(pair.engine.weights(), version=version)
        check_is_the_trainers(pair, version=version)
    assert tokens(pair.sampler.generate(prompts(), PARAMS, seed=9)) != before


def test_rollouts_end_at_any_end_token_or_at_the_limit(pair: SimpleNamespace) -> None:
    check_how_rollouts_end(pair.sampler)


def test_what_is_drawn_depends_on_seed_and_place_alone(pair: SimpleNamespace) -> None:
    check_what_draws_depend_on(pair.sampler)


def test_a_stop_takes_back_what_is_under_way(pair: SimpleNamespace) -> None:
    def stop(index: int, rollout: Rollout) -> None:
        raise KeyboardInterrupt

    many = SamplingParams(n=32, max_tokens=80)
    with pytest.raises(KeyboardInterrupt):
        pair.sampler.generate(prompts(), many, seed=1, on_finish=stop)
    stopped_s = time.monotonic()
    (replica,) = pair.sampler.replicas
    while replica.calls or num_running(replica.address):
        assert time.monotonic() - stopped_s < 2.0
        time.sleep(0.05)


def test_a_stop_ends_an_update(pair: SimpleNamespace) -> None:
    def until_stopped() -> Iterator[tuple[str, torch.Tensor]]:
        yield next(pair.engine.weights())
        nonlocal begin_s
        begin_s = time.monotonic()
        raise KeyboardInterrupt

    begin_s = 0.0
    with pytest.raises(KeyboardInterrupt):
        pair.sampler.load_weights(until_stopped(), version=90)
    assert time.monotonic() - begin_s < 2.0
    (replica,) = pair.sampler.replicas
    assert replica.version() is None
    pair.sampler.load_weights(pair.engine.weights(), version=5)
    check_is_the_trainers(pair, version=5)


def num_running(address: Address) -> float:
    """Requests that a server still works on."""
    with socket.create_connection((address.host, address.port)) as line:
        line.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = line.makefile().read()
    return sum(
        float(row.rsplit(" ", 1)[1])
        for row in text.splitlines()
        if row.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
    )


def test_a_server_that_runs_already_is_joined(pair: SimpleNamespace) -> None:
    (own,) = pair.sampler.replicas
    (joined,) = join_replicas(pair.settings, [own.address.url + "/v1/"])
    assert joined.server is None
    assert joined.version() == pair.sampler.version
    other = wanted_of(pair.settings.model_dir, dtype="bfloat16", temperature=0.5)
    with pytest.raises(ConfigError, match="dtype is float32, and this run needs bfloat16") as told:
        join_replicas(other, [own.address.url])
    assert str(told.value).count("\n") == 1
    assert "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints" in str(told.value)
    assert "--logprobs-mode processed_logprobs" in str(told.value)


def test_a_request_that_the_server_refuses_is_told(pair: SimpleNamespace) -> None:
    too_many = SamplingParams(n=1, max_tokens=1000)
    with pytest.raises(SamplerError, match=r"refuses a request: HTTP 400: .*max_tokens"):
        pair.sampler.generate(prompts(1), too_many, seed=0)


def test_a_server_that_dies_or_hangs_is_started_again_once(
    pair: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = SamplingParams(n=12, max_tokens=60)
    undisturbed = pair.sampler.generate(prompts(), many, seed=5)
    (replica,) = pair.sampler.replicas
    killed: list[int] = []

    def kill_engine(index: int, rollout: Rollout) -> None:
        if not killed:
            killed.append(engine_of(replica).pid)
            os.kill(killed[-1], signal.SIGKILL)

    with collected(prints=False) as messages:
        rollouts = pair.sampler.generate(prompts(), many, seed=5, on_finish=kill_engine)
    assert replica.deaths == 1
    (told,) = messages
    assert told.startswith(f"the vLLM server at {replica.address.url} died: ")
    assert told.endswith("; it is started again.")
    assert tokens(rollouts) == tokens(undisturbed)
    monkeypatch.setattr(inflight_requests, "PULSE_S", 0.5)
    monkeypatch.setattr(inflight_requests, "SILENT_S", 4.0)
    begin_s = time.monotonic()

    def stop_engine(index: int, rollout: Rollout) -> None:
        engine_of(replica).suspend()

    with pytest.raises(SamplerError, match="died twice"):
        pair.sampler.generate(prompts(), many, seed=5, on_finish=stop_engine)
    assert time.monotonic() - begin_s < 12


def test_the_last_server_ends_a_run_that_cannot_give_it_weights_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    gone = Replica(Address("127.0.0.1", port), wanted_of(Path()))
    sampler = ServerSampler([gone], None, eos_token_ids=EOS, sends=False)
    begin_s = time.monotonic()
    with pytest.raises(SamplerError, match=r"the last vLLM server died.*\nResume this run"):
        sampler.generate(prompts(1), PARAMS, seed=0)
    assert time.monotonic() - begin_s < 5


@pytest.mark.parametrize("rank", [0, 4])
def test_matrices_are_sent_as_wide_as_the_server_keeps_them(rank: int) -> None:
    weights = [("a.lora_A.b", torch.randn(4, 3)), ("c", torch.randn(3, 4)), ("d", torch.randn(3))]
    settings = wanted_of(Path(), dtype="bfloat16", lora_rank=rank)
    sent = {name: tensor.dtype for name, tensor in for_server(weights, settings)}
    if rank:
        assert sent == {"a.lora_A.b": torch.float32}
    else:
        assert sent == {"a.lora_A.b": torch.bfloat16, "c": torch.bfloat16, "d": torch.float32}
    exact = for_server(weights[1:], wanted_of(Path()))
    assert all(tensor is own for (_, tensor), (_, own) in zip(exact, weights[1:], strict=True))


def engine_of(replica: Replica) -> psutil.Process:
    (engine,) = [
        process
        for process in psutil.Process(replica.server.pid).children(recursive=True)
        if "EngineCore" in "".join(process.cmdline())
    ]
    return engine


@pytest.mark.nightly
def test_a_server_that_died_between_steps_comes_back(pair: SimpleNamespace) -> None:
    (replica,) = pair.sampler.replicas
    replica.server.kill()
    with collected(prints=False) as messages:
        pair.sampler.load_weights(pair.engine.weights(), version=8)
    assert len(messages) == 1
    assert replica.version() == 8
    check_is_the_trainers(pair, version=8)


def test_adapters_are_sent_alone(pairs: dict[str, SimpleNamespace]) -> None:
    pair = pairs["lora"]
    for version in (1, 2):
        move(pair.engine, seed=version)
        pair.sampler.load_weights(pair.engine.weights(), version=version)
        check_is_the_trainers(pair, version=version)


class Plain(BaseHTTPRequestHandler):
    """What a server says that was started in the usual way."""

    def do_GET(self) -> None:
        self._say(200, b'{"data": [{"id": "m", "parent": null, "max_model_len": 96}]}')

    def do_POST(self) -> None:
        self._say(404, b'{"detail": "Not Found"}')

    def log_message(self, *args: object) -> None:
        pass

    def _say(self, status: int, text: bytes) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def test_a_plain_server_is_refused_with_what_starts_one_that_is_fit(tmp_path: Path) -> None:
    settings = wanted_of(tmp_path, device="cuda", lora_rank=5)
    with HTTPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ConfigError, match="does not take weights") as told:
            join_replicas(settings, [url])
        server.shutdown()
    command = str(told.value).splitlines()[1]
    assert "VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 python -m vllm" in command
    assert f"--port {server.server_port} --worker-extension-cls rlcli" in command
    assert "--max-lora-rank 8" in command
    with pytest.raises(ConfigError, match="it does not answer"):
        join_replicas(settings, [url])


def test_addresses() -> None:
    assert address_of("http://host:8000/v1/") == Address("host", 8000)
    assert address_of("https://host/models/a/v1").url == "https://host:443/models/a"
    assert address_of("http://[::1]:80").url == "http://[::1]:80"
    for wrong in ("host:8000", "ftp://host", "http://", "http://host:port", "http://h?a=b"):
        with pytest.raises(ConfigError, match="is no address"):
            address_of(wrong)


START = """
import sys, time
from pathlib import Path
from rlcli.rollout.vllm.engine import VllmSettings
from rlcli.rollout.vllm.server import Server
settings = VllmSettings(
    model_dir=Path(sys.argv[1]), dtype="float32", device="cpu",
    max_tokens=96, max_num_seqs=32, temperature=1.0,
)
server = Server(settings, gpus=[], log=Path(sys.argv[1]) / "vllm_0.log")
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_server_ends_with_whoever_started_it(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-c", START, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as starter:
        assert starter.stdout is not None
        try:
            group = int(starter.stdout.readline())
            time.sleep(0.5)
            assert members(group)
            starter.send_signal(number)
            starter.wait(5)
        finally:
            starter.kill()
    deadline_s = time.monotonic() + 5
    while members(group):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def members(group: int) -> list[int]:
    """Processes of a group that live."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if process.info["status"] != "zombie" and os.getpgid(process.pid) == group:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


def test_a_server_that_cannot_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    settings = wanted_of(tmp_path / "nothing")
    with pytest.raises(SamplerError, match=r"ended while it started: .*Error") as told:
        start_replicas(settings, [[]], run_dir=tmp_path)
    assert "vllm_0.log" in str(told.value)
