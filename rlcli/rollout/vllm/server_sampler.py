"""Sample rollouts with vLLM servers, to which the trainer sends its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcli.errors import SamplerError
from rlcli.rollout.base import OnFinish, SamplingParams
from rlcli.rollout.vllm.adapter import PARTS
from rlcli.rollout.vllm.client import address_of
from rlcli.rollout.vllm.engine import VllmSettings
from rlcli.rollout.vllm.inflight_requests import Flight
from rlcli.rollout.vllm.local_sampler import Weights
from rlcli.rollout.vllm.replica import OnWait, Replica, Update
from rlcli.rollout.vllm.requests import SampleRequest, answered, wanted
from rlcli.rollout.vllm.server import Server
from rlcli.rollout.vllm.weight_transfer import send
from rlcli.types import Prompt, Rollout

LOG = logging.getLogger(__name__)


MAX_DEATHS = 1
"""Maximum deaths of one server between two updates."""


def start_replicas(
    settings: VllmSettings,
    gpus: Sequence[Sequence[str]],
    *,
    run_dir: Path,
    on_wait: OnWait = lambda waited_s: None,
) -> list[Replica]:
    """Start a server for each list of GPUs (empty: CPU), in parallel, until ready for weights.

    Their logs are vllm_0.log, ... in the run directory. Raises: SamplerError, OSError.
    """
    servers = [
        Server(settings, gpus=names, log=run_dir / f"vllm_{number}.log")
        for number, names in enumerate(gpus)
    ]
    replicas = [Replica(server.address, settings, server) for server in servers]
    try:
        for server in servers:
            server.start()
        for replica in replicas:
            replica.wait(on_wait)
    except BaseException:
        close_replicas(replicas)
        raise
    return replicas


def join_replicas(settings: VllmSettings, urls: Sequence[str]) -> list[Replica]:
    """Connect to running servers. Raises: ConfigError with the command for a compatible one."""
    replicas = [Replica(address_of(url), settings) for url in urls]
    for replica in replicas:
        replica.wait()
    return replicas


def close_replicas(replicas: Sequence[Replica]) -> None:
    """End the servers that this process started, in parallel."""
    servers = [replica.server for replica in replicas if replica.server is not None]
    for server in servers:
        server.end()
    for server in servers:
        server.kill()


def for_server(
    weights: Iterable[tuple[str, Tensor]], settings: VllmSettings
) -> Iterator[tuple[str, Tensor]]:
    """The `weights` to send to a server: adapters with LoRA, else all, in its dtype.

    Vectors keep their dtype: they are small, and some models use float32 for them.
    """
    dtype = getattr(torch, settings.dtype)
    for name, tensor in weights:
        if not settings.lora_rank:
            is_wider = tensor.dtype.itemsize > dtype.itemsize
            yield name, tensor.detach().to(dtype) if is_wider and tensor.ndim > 1 else tensor
        elif any(part in name for part in PARTS):
            yield name, tensor


class ServerSampler:
    """vLLM servers that the ranks of a run share.

    weights: where a server finds the current weights when it comes back; none where that takes
    all ranks. sends: whether this rank gives the weights to the servers. meet: returns when all
    ranks are there.
    """

    is_exact = False

    def __init__(
        self,
        replicas: Sequence[Replica],
        tokenizer: Any,
        *,
        eos_token_ids: Sequence[int],
        lora_alpha: float = 0.0,
        weights: Weights | None = None,
        sends: bool = True,
        meet: Callable[[], object] = lambda: None,
    ) -> None:
        self.replicas, self.tokenizer = list(replicas), tokenizer
        self.settings = self.replicas[0].settings
        self.eos_token_ids = tuple(eos_token_ids)
        self.lora_alpha = lora_alpha
        self.weights, self.sends, self.meet = weights, sends, meet
        self.version = 0

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """Sample from these weights from now on; servers that are down are restarted first.

        Raises: SamplerError if a server does not load them.
        """
        self.version = version
        if self.sends:
            self._revive_the_dead()
            for replica, error in self._give(self.replicas, weights).items():
                if replica.is_alive() or self.weights is None:
                    raise self._not_taken(replica, error) from error
                replica.mark_down()
                self._bring_back(replica, self.weights)
        else:
            for _ in weights:
                pass
        self.meet()
        for replica in self.replicas:
            replica.is_down, replica.deaths = False, 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        prompt_indices: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Rollout]:
        """params.n rollouts per prompt, prompts in order.

        Unfinished requests of a dead server go to another, or to itself after a restart, with
        the same seeds. Raises: SamplerError if that fails too.
        """
        asked = wanted(prompts, params, seed=seed, prompt_indices=prompt_indices)
        flight = Flight(
            self.replicas,
            lambda one, replica: self._body(one, params, model=replica.model(self.version)),
            group=params.n,
            max_num_seqs=self.settings.max_num_seqs,
            on_death=self._lost,
        )
        done: dict[int, Rollout] = {}
        try:
            for one, answer in flight.run(asked):
                rollout = done[one.index] = self._rollout(one.prompt, answer, params)
                if on_finish is not None:
                    on_finish(one.index, rollout)
        except BaseException:
            flight.abort()
            raise
        return [done[index] for index in range(len(asked))]

    def sleep(self) -> None:
        """Does nothing: the servers have their own memory."""

    def close(self) -> None:
        """End the servers that this process started."""
        close_replicas(self.replicas)

    def _body(self, one: SampleRequest, params: SamplingParams, *, model: str) -> dict[str, Any]:
        is_greedy = params.temperature == 0
        return {
            "model": model,
            "prompt": list(one.prompt.token_ids),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": max(params.top_k, 0),
            "seed": None if is_greedy else one.seed,
            "max_tokens": params.max_tokens,
            "stop_token_ids": list(self.eos_token_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def _rollout(self, prompt: Prompt, answer: Any, params: SamplingParams) -> Rollout:
        choice = answer["choices"][0]
        return answered(
            self.tokenizer,
            prompt,
            choice["token_ids"],
            choice["logprobs"]["token_logprobs"],
            told=choice["finish_reason"],
            version=self.version,
            params=params,
        )

    def _lost(self, replica: Replica, error: Exception) -> None:
        """Continue without it until the next update; if it was the last server, restart it.

        Raises: SamplerError if it cannot be restarted.
        """
        replica.mark_down()
        if replica.deaths > MAX_DEATHS:
            raise SamplerError(f"a vLLM server died twice in one step: {replica.last_words()}")
        if any(not other.is_down for other in self.replicas):
            LOG.warning(
                f"the vLLM server at {replica.address.url} died: {replica.last_words()}; the "
                "others do its work until the next update."
            )
            return
        if self.weights is None:
            said = replica.last_words() if replica.server else error
            raise SamplerError(f"the last vLLM server died: {said}\nResume this run.") from error
        self._bring_back(replica, self.weights)

    def _revive(self, replica: Replica, *, is_known: bool = False) -> None:
        """Restart a replica, without weights. is_known: its death is already reported."""
        url = replica.address.url
        if replica.server is None:
            LOG.warning(f"the vLLM server at {url} is gone; it is waited for.")
        elif is_known:
            LOG.warning(f"the vLLM server at {url} is started again.")
        else:
            words = replica.last_words()
            LOG.warning(f"the vLLM server at {url} died: {words}; it is started again.")
        replica.revive()

    def _bring_back(self, replica: Replica, weights: Weights) -> None:
        """Restart a replica with the current weights. Raises: SamplerError."""
        self._revive(replica)
        for failed, error in self._give([replica], weights()).items():
            raise self._not_taken(failed, error) from error

    def _revive_the_dead(self) -> None:
        for replica in self.replicas:
            is_known = replica.is_down
            if is_known or not replica.is_alive():
                replica.mark_down()
                self._revive(replica, is_known=is_known)

    def _give(
        self, replicas: Sequence[Replica], weights: Iterable[tuple[str, Tensor]]
    ) -> dict[Replica, Exception]:
        """Send `weights` to all, always reading them to the end; returns those that failed."""
        weights = for_server(weights, self.settings)
        updates = [
            Update(replica, version=self.version, lora_alpha=self.lora_alpha)
            for replica in replicas
        ]
        with ThreadPoolExecutor(len(updates)) as pool:
            try:
                list(pool.map(Update.begin, updates))
                here = {each.offer: each for each in updates if each.offer and not each.error}
                for offer, error in send(weights, list(here)).items():
                    here[offer].error = here[offer].error or error
                    offer.close()
                list(pool.map(Update.finish, updates))
            except BaseException:
                for each in updates:
                    each.give_up()
                raise
        return {each.replica: each.error for each in updates if each.error is not None}

    def _not_taken(self, replica: Replica, error: Exception) -> SamplerError:
        return SamplerError(
            f"the vLLM server at {replica.address.url} did not take the weights of step "
            f"{self.version}: {error}"
        )
