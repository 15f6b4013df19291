"""One of the sampling servers: compatibility, weight updates, requests and health."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from rlcli.errors import ConfigError, SamplerError
from rlcli.rollout.vllm.client import (
    Address,
    Call,
    ServerFailedError,
    ServerRefusedError,
    ask,
)
from rlcli.rollout.vllm.engine import VllmSettings, logprobs_mode
from rlcli.rollout.vllm.server import Server, told_command
from rlcli.rollout.vllm.weight_transfer import WeightServer, route_to

ANSWER_S = 30.0
"""Timeout of a server's status requests, in seconds."""
START_LIMIT_S = 1800.0
"""Enough to compile a large model for the first time."""
RETURN_LIMIT_S = 120.0
"""How long an external server may be unavailable, in seconds."""
UPDATE_LIMIT_S = 1800.0
PAUSE_LIMIT_S = 60.0
"""Time for the engine's current step to end, in seconds."""
GIVE_UP_S = 1.0
HEALTH_PROBE: tuple[str, Any] = ("/collective_rpc", {"method": "rlcli_about"})
"""Request that the engine itself answers; /health is answered even if the engine hangs."""
TICK_S = 0.5
ADAPTER = "rlcli-"
"""Prefix of an adapter's name in requests; the version of its weights follows."""

OnWait = Callable[[float], None]
"""Called repeatedly with the seconds that a server has taken to start so far."""

Failures = (ServerFailedError, ServerRefusedError, OSError)


@dataclass(eq=False)
class Replica:
    """A server and its state.

    server: its process, where this process started it. deaths: since it last took weights.
    starts: how often it came to life.
    """

    address: Address
    settings: VllmSettings
    server: Server | None = None
    is_down: bool = False
    deaths: int = 0
    starts: int = 1
    base: str = ""
    num_workers: int = 0
    calls: set[Call] = field(default_factory=set[Call])

    def wait(self, on_wait: OnWait = lambda waited_s: None) -> None:
        """Wait until the server is ready and compatible. Raises: SamplerError, ConfigError."""
        if self.server is not None:
            self._wait_for_start(self.server, on_wait)
        self.check()
        self.is_down = False

    def check(self) -> None:
        """Raises: ConfigError if the server cannot sample for this run."""
        try:
            bases, _ = self.models()
        except (*Failures, KeyError, TypeError) as error:
            raise self._unfit(f"it does not answer: {error}") from error
        if len(bases) != 1:
            raise self._unfit(f"it serves {len(bases)} models ({', '.join(bases)}), not one")
        self.base = bases[0]
        abouts = self.about()
        self.num_workers = len(abouts)
        if misfit := _misfit(abouts[0], self.settings):
            raise self._unfit(misfit)

    def models(self) -> tuple[list[str], list[str]]:
        """Names of the server's models and adapters."""
        data = ask(self.address, "/v1/models", timeout_s=ANSWER_S)["data"]
        return (
            [str(model["id"]) for model in data if not model.get("parent")],
            [str(model["id"]) for model in data if model.get("parent")],
        )

    def model(self, version: int) -> str:
        """Model name in a request for the weights of `version`."""
        return f"{ADAPTER}{version}" if self.settings.lora_rank else self.base

    def about(self) -> list[dict[str, Any]]:
        """Status of each of its workers. Raises: ConfigError."""
        try:
            return ask(self.address, *HEALTH_PROBE, timeout_s=ANSWER_S)["results"]
        except ServerRefusedError as error:
            raise self._unfit(f"it does not take weights (/collective_rpc: {error})") from error
        except Failures as error:
            if "rlcli_about" not in str(error):
                raise self._unfit(f"/collective_rpc does not answer: {error}") from error
            raise self._unfit("it was started without rlcli's receiver of weights") from error

    def version(self) -> int | None:
        """Version of the weights that all its workers have; None if it is unavailable."""
        try:
            versions = {about["version"] for about in self.about()}
        except ConfigError:
            return None
        return versions.pop() if len(versions) == 1 else None

    def is_alive(self) -> bool:
        """Whether its process runs and its engine responds."""
        if self.server is not None and not self.server.is_running():
            return False
        try:
            ask(self.address, *HEALTH_PROBE, timeout_s=ANSWER_S)
        except ServerRefusedError:
            return True  # `check` reports what is missing
        except Failures:
            return False
        return True

    def mark_down(self) -> None:
        """Mark it as dead, and fail its open requests at once."""
        self.is_down = True
        self.deaths += 1
        self.abort()
        if self.server is not None:
            self.server.kill()

    def revive(self) -> None:
        """Restart it, or wait until its owner has. Raises: SamplerError."""
        if self.server is not None:
            self.server.start()
            self.wait()
        else:
            deadline_s = time.monotonic() + RETURN_LIMIT_S
            while not self.is_alive():
                if time.monotonic() > deadline_s:
                    raise SamplerError(
                        f"the vLLM server at {self.address.url} has not answered for "
                        f"{RETURN_LIMIT_S:g} s.\nStart it again, then resume this run."
                    )
                time.sleep(TICK_S)
            self.wait()
        self.starts += 1

    def abort(self) -> None:
        """Cancel all its requests."""
        for call in list(self.calls):
            call.end()

    def last_words(self) -> str:
        """Its last log lines, if they can be read here."""
        said = self.server.last_words() if self.server is not None else ""
        log = f" ({self.server.log})" if self.server is not None else ""
        return f"{said or 'it said nothing'}{log}"

    def _wait_for_start(self, server: Server, on_wait: OnWait) -> None:
        begin_s = time.monotonic()
        while True:
            with suppress(*Failures):
                ask(self.address, "/health", timeout_s=ANSWER_S)
                return
            is_running = server.is_running()
            waited_s = time.monotonic() - begin_s
            if is_running and waited_s < START_LIMIT_S:
                on_wait(waited_s)
                time.sleep(TICK_S)
                continue
            what = "has not come up" if is_running else "ended while it started"
            raise SamplerError(f"a vLLM server {what}: {self.last_words()}")

    def _unfit(self, why: str) -> ConfigError:
        command = told_command(self.settings, self.address)
        return ConfigError(f"the vLLM server at {self.address.url}: {why}.\nStart it so: {command}")


def _misfit(about: Mapping[str, Any], settings: VllmSettings) -> str:
    """Difference between a server and the settings; "" if there is none."""
    wanted = {"dtype": settings.dtype, "logprobs_mode": logprobs_mode(settings)}
    wanted |= {"defaults": "vllm"}  # else the model's defaults would be added to a request
    for name, value in wanted.items():
        if about[name] != value:
            return f"its {name} is {about[name]}, and this run needs {value}"
    if about["max_tokens"] < settings.max_tokens:
        return f"it takes {about['max_tokens']} tokens, and this run needs {settings.max_tokens}"
    if settings.lora_rank and not about["takes_adapters"]:
        return "it takes no adapters while it runs"
    if (room := about["lora_rank"]) < settings.lora_rank:
        return f"it takes adapters of rank {room}, and this run's have {settings.lora_rank}"
    return ""


class Update:
    """A weight update of one replica, as a context manager; sampling resumes after it.

    error: what went wrong, None so far.
    """

    def __init__(self, replica: Replica, *, version: int, lora_alpha: float) -> None:
        self.replica, self.version = replica, version
        self.lora_alpha = lora_alpha
        self.error: Exception | None = None
        self.offer: WeightServer | None = None
        self._answer: Any = None
        self._thread: Thread | None = None

    def begin(self) -> None:
        """Pause sampling, and connect the workers to receive weights."""
        address = self.replica.address
        try:
            ask(address, "/pause?mode=abort", {}, timeout_s=PAUSE_LIMIT_S)
            offer = self.offer = WeightServer(route_to(address.host, address.port))
            self._thread = Thread(target=self._fetch, args=(offer,), daemon=True)
            self._thread.start()
            offer.meet(self.replica.num_workers, is_over=lambda: self.error is not None)
        except Failures as error:
            self.error = self.error or error

    def finish(self) -> None:
        """Resume sampling with the new weights, and drop caches of the old ones."""
        address = self.replica.address
        if self._thread is not None:
            # the engine reports an error soon, or never
            self._thread.join(ANSWER_S if self.error else UPDATE_LIMIT_S)
        try:
            if self.error is None and self.replica.settings.lora_rank:
                self._load_adapter()
            if self.error is None:
                done = ask(address, "/reset_prefix_cache", {}, timeout_s=UPDATE_LIMIT_S)
                if done is not None and not done.get("success", True):
                    raise ServerFailedError("the prefix cache could not be emptied")
        except Failures as error:
            self.error = error
        finally:
            if self.offer is not None:
                self.offer.close()
            try:
                ask(address, "/resume", {}, timeout_s=ANSWER_S)
            except Failures as error:
                self.error = self.error or error

    def give_up(self) -> None:
        """Stop the workers' waiting, so that the server responds to others again."""
        self.error = self.error or ServerFailedError("the update was given up")
        if self.offer is not None:
            self.offer.close()
        with suppress(*Failures):
            ask(self.replica.address, "/resume", {}, timeout_s=GIVE_UP_S)

    def _fetch(self, offer: WeightServer) -> None:
        settings = self.replica.settings
        args: list[Any] = [offer.host, offer.port, offer.key, self.version]
        method = "rlcli_fetch_weights"
        if settings.lora_rank:
            args.append({"rank": settings.lora_rank, "alpha": self.lora_alpha})
            method = "rlcli_fetch_adapter"
        try:
            body = {"method": method, "args": args}
            self._answer = ask(
                self.replica.address, "/collective_rpc", body, timeout_s=UPDATE_LIMIT_S
            )
        except Failures as error:
            self.error = error

    def _load_adapter(self) -> None:
        """vLLM reads it at once; its folders are not needed after that.

        Under a new name each time: one that is loaded in place is read again with every step that
        vLLM makes (0.32).
        """
        address, name = self.replica.address, self.replica.model(self.version)
        folders = [answer["folder"] for answer in self._answer["results"]]
        try:
            for old in self.replica.models()[1]:
                if old.startswith(ADAPTER):
                    body = {"lora_name": old}
                    ask(address, "/v1/unload_lora_adapter", body, timeout_s=ANSWER_S)
            body = {"lora_name": name, "lora_path": folders[0]}
            ask(address, "/v1/load_lora_adapter", body, timeout_s=UPDATE_LIMIT_S)
        finally:
            body = {"method": "rlcli_drop_adapter", "args": [folders]}
            ask(address, "/collective_rpc", body, timeout_s=ANSWER_S)
