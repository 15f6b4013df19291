"""Sample rollouts with vLLM in this process, with the trainer's weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from rlcli.errors import SamplerError
from rlcli.rollout.base import OnFinish, SamplingParams
from rlcli.rollout.vllm.adapter import write_adapter
from rlcli.rollout.vllm.engine import VllmSettings, load_vllm, start_engine
from rlcli.rollout.vllm.requests import SampleRequest, answered, wanted
from rlcli.rollout.vllm.versions import free_memory, let_go, part
from rlcli.types import Prompt, Rollout

LOG = logging.getLogger(__name__)


Weights = Callable[[], Iterator[tuple[str, Tensor]]]


class EngineFailedError(Exception):
    """vLLM raised an error in a step."""


class VllmSampler:
    """vLLM in the trainer's process; on a GPU it sleeps while others need the memory.

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
        self._asleep: set[str] = set()
        self._adapter: Any = None
        self._adapter_folder: TemporaryDirectory[str] | None = None
        self.engine: Any = start_engine(settings)

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """Sample from these weights from now on, and drop caches of the old ones."""
        self._wake("weights")
        if self.settings.lora_rank:
            self._load_adapter(weights)
        else:
            self.engine.collective_rpc("rlcli_take_weights", args=(weights,))
        if not self.engine.reset_prefix_cache():
            raise SamplerError("vLLM keeps what it remembers of the weights before")
        self.version = version

    def sleep(self) -> None:
        """Release GPU memory to the trainer. The model's own weights are kept in the
        host's memory; weights that the trainer sends anew are not."""
        if self.settings.device == "cuda":
            self.engine.sleep(level=1 if self.settings.lora_rank else 2)
            self._asleep = {"weights", "kv_cache"}

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

        A failed engine is restarted once, with the same weights, and samples what is
        missing with the same seeds. Raises: SamplerError if it fails again.
        """
        asked = wanted(prompts, params, seed=seed, prompt_indices=prompt_indices)
        done: dict[int, Rollout] = {}

        def take(index: int, rollout: Rollout) -> None:
            done[index] = rollout
            if on_finish is not None:
                on_finish(index, rollout)

        try:
            self._sample(asked, params, take)
        except EngineFailedError as error:
            self._start_again(str(error))
            try:
                self._sample([one for one in asked if one.index not in done], params, take)
            except EngineFailedError as again:
                raise SamplerError(f"vLLM failed twice in one step: {again}") from again
        return [done[index] for index in range(len(asked))]

    def close(self) -> None:
        """Shut the engine down."""
        engine, self.engine = self.engine, None
        if engine is not None:
            with suppress(Exception):
                let_go(engine)
        if self._adapter_folder is not None:
            self._adapter_folder.cleanup()

    def _sample(
        self, asked: Sequence[SampleRequest], params: SamplingParams, take: OnFinish
    ) -> None:
        running: dict[str, SampleRequest] = {}
        self._wake("kv_cache")
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
            told = f"{type(error).__name__}: {error}"
        # raised outside the except block, so that no traceback keeps the engine and its memory
        raise EngineFailedError(told)

    def _ask(self, one: SampleRequest, params: SamplingParams) -> str:
        """Add a request to the engine and return its number."""
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
        return answered(
            self.tokenizer,
            prompt,
            output.token_ids,
            output.logprobs.logprobs,
            told=output.finish_reason,
            version=self.version,
            params=params,
        )

    def _load_adapter(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        folder = TemporaryDirectory(prefix="rlcli-adapter-")
        rank = self.settings.lora_rank
        write_adapter(weights, Path(folder.name), rank=rank, alpha=self.lora_alpha)
        adapter = part("lora.request").LoRARequest(folder.name, next(self._numbers), folder.name)
        if self._adapter is not None:
            self.engine.remove_lora(self._adapter.lora_int_id)
        try:
            self.engine.add_lora(adapter)
        except ValueError as error:
            raise SamplerError(f"vLLM does not take the adapter: {error}") from error
        if self._adapter_folder is not None:
            self._adapter_folder.cleanup()
        self._adapter, self._adapter_folder = adapter, folder

    def _start_again(self, told: str) -> None:
        """Start a new engine with the current weights. Raises: SamplerError if it has none."""
        if self.weights is None:
            raise SamplerError(f"vLLM failed: {told}")
        LOG.warning(f"vLLM failed: {told}; it is started again, and samples what is missing.")
        try:
            self.close()
            self._adapter = self._adapter_folder = None
            self._asleep.clear()
            free_memory(self.settings.device)
            self.engine = start_engine(self.settings)
            self.load_weights(self.weights(), version=self.version)
        except Exception as again:
            raise SamplerError(
                f"vLLM failed: {told}\nIt could not be started again: {again}"
            ) from again

    def _wake(self, part: str) -> None:
        """Wake `weights` or `kv_cache` separately: vLLM 0.26 maps parts already awake twice."""
        if part in self._asleep:
            free_memory(self.settings.device)
            self.engine.wake_up(tags=[part])
            self._asleep.discard(part)
