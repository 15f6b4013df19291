"""Rollouts from vLLM in this process, with the weights that the trainer gives it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import Tensor

from rlcli.errors import SamplerError
from rlcli.rollout.base import OnFinish, SamplingParams, finished_rollout
from rlcli.rollout.vllm.adapter import write_adapter
from rlcli.rollout.vllm.engine import VllmSettings, load_vllm, start_engine
from rlcli.rollout.vllm.versions import let_go, part
from rlcli.types import Prompt, Rollout

Weights = Callable[[], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One response that is wanted. index: its place in the final list."""

    index: int
    prompt: Prompt
    seed: int


class EngineFailedError(Exception):
    """vLLM ended a step with an error of its own."""


class VllmSampler:
    """vLLM beside the trainer; on a GPU it sleeps while others need the memory.

    weights: where a fresh engine finds the current weights after a crash; none where that takes
    all ranks.
    """

    is_exact = False

    def __init__(
        self,
        settings: VllmSettings,
        tokenizer: Any,
        *,
        eos_token_ids: Sequence[int],
        lora_alpha: float = 0.0,
        weights: Weights | None = None,
    ) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self.eos_token_ids = tuple(eos_token_ids)
        self.lora_alpha = lora_alpha
        self.weights = weights
        self.version = 0
        self._numbers = count(1)
        self._adapter: Any = None
        self._adapter_folder: TemporaryDirectory[str] | None = None
        self.engine = start_engine(settings)

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """Sample from these weights from now on; nothing is remembered of the ones before."""
        self._wake("weights")
        if self.settings.lora_rank:
            self._load_adapter(weights)
        else:
            self.engine.collective_rpc("rlcli_take_weights", args=(weights,))
        self.engine.reset_prefix_cache()
        self.version = version

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        places: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Rollout]:
        """params.n rollouts per prompt, prompts in order.

        An engine that fails is started again once, with the same weights, and samples what is
        still missing from the same seeds. Raises: SamplerError where that fails too.
        """
        places = range(len(prompts)) if places is None else places
        asked = [
            Asked(
                index=number * params.n + member,
                prompt=prompt,
                seed=zlib.crc32(repr((seed, place, member)).encode()),
            )
            for number, (prompt, place) in enumerate(zip(prompts, places, strict=True))
            for member in range(params.n)
        ]
        done: dict[int, Rollout] = {}

        def take(index: int, rollout: Rollout) -> None:
            done[index] = rollout
            if on_finish is not None:
                on_finish(index, rollout)

        try:
            self._sample(asked, params, take)
        except EngineFailedError as error:
            self._start_again(error)
            try:
                self._sample([one for one in asked if one.index not in done], params, take)
            except EngineFailedError as again:
                raise SamplerError(f"vLLM failed twice in one step: {again}") from again
        return [done[index] for index in range(len(asked))]

    def close(self) -> None:
        """Let go of the engine."""
        with suppress(Exception):
            let_go(self.engine)
        if self._adapter_folder is not None:
            self._adapter_folder.cleanup()

    def _sample(self, asked: Sequence[Asked], params: SamplingParams, take: OnFinish) -> None:
        running: dict[str, Asked] = {}
        with self._awake():
            try:
                for one in asked:
                    running[self._ask(one, params)] = one
                while running:
                    for output in self._step():
                        if output.finished:
                            one = running.pop(output.request_id)
                            take(one.index, self._rollout(one.prompt, output.outputs[0], params))
            except BaseException:
                with suppress(Exception):
                    self.engine.abort_request(list(running))
                raise

    def _step(self) -> Sequence[Any]:
        try:
            return self.engine.step()
        except Exception as error:
            raise EngineFailedError(f"{type(error).__name__}: {error}") from error

    def _ask(self, one: Asked, params: SamplingParams) -> str:
        """The number of a request that is on its way."""
        is_greedy = params.temperature == 0
        wanted = load_vllm().SamplingParams(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=max(params.top_k, 0),
            seed=None if is_greedy else one.seed,
            max_tokens=params.max_tokens,
            stop_token_ids=list(self.eos_token_ids),
            ignore_eos=True,
            detokenize=False,
            logprobs=0,
            flat_logprobs=True,
        )
        number = str(next(self._numbers))
        prompt = {"prompt_token_ids": list(one.prompt.token_ids)}
        self.engine.add_request(number, prompt, wanted, lora_request=self._adapter)
        return number

    def _rollout(self, prompt: Prompt, output: Any, params: SamplingParams) -> Rollout:
        reason: Literal["stop", "length"] = "length" if output.finish_reason == "length" else "stop"
        if output.finish_reason != reason:
            raise SamplerError(f"vLLM ended a response with {output.finish_reason!r}")
        return finished_rollout(
            self.tokenizer,
            prompt,
            output.token_ids,
            output.logprobs.logprobs,
            finish_reason=reason,
            policy_version=self.version,
            greedy=params.temperature == 0,
        )

    def _load_adapter(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        folder = TemporaryDirectory(prefix="rlcli-adapter-")
        rank = self.settings.lora_rank
        write_adapter(weights, Path(folder.name), rank=rank, alpha=self.lora_alpha)
        adapter = part("lora.request").LoRARequest(folder.name, next(self._numbers), folder.name)
        if self._adapter is not None:
            self.engine.remove_lora(self._adapter.lora_int_id)
        self.engine.add_lora(adapter)
        if self._adapter_folder is not None:
            self._adapter_folder.cleanup()
        self._adapter, self._adapter_folder = adapter, folder

    def _start_again(self, error: EngineFailedError) -> None:
        """A fresh engine with the current weights. Raises: SamplerError where there is none."""
        if self.weights is None:
            raise SamplerError(f"vLLM failed: {error}") from error
        try:
            self.close()
            self._adapter = self._adapter_folder = None
            self.engine = start_engine(self.settings)
            self.load_weights(self.weights(), version=self.version)
        except Exception as again:
            told = f"vLLM failed: {error}\nIt could not be started again: {again}"
            raise SamplerError(told) from again

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Inside, a GPU has room for keys and values; afterwards for the trainer."""
        self._wake(None)
        yield
        if self.settings.device == "cuda":
            self.engine.sleep(level=1)

    def _wake(self, part: str | None) -> None:
        if self.settings.device == "cuda" and self.engine.is_sleeping():
            self.engine.wake_up(tags=None if part is None else [part])
