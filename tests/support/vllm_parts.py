"""Real vLLM, on the CPU, beside real trainers of tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from engine_parts import config, make_engine

from rlcli.engines.torch_engine import TorchEngine
from rlcli.rollout.base import SamplingParams
from rlcli.terminal.logs import collected
from rlcli.types import Prompt, Rollout

EOS = (2, 5)


def save_model(folder: Path, *, tied: bool = True) -> Path:
    """A Qwen2 of a size that vLLM's CPU attention takes (32 numbers a head), and a tokenizer."""
    from saved_models import save_tokenizer
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    size = save_tokenizer(folder)
    settings = Qwen2Config(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        eos_token_id=list(EOS),
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(settings)
    with torch.no_grad():  # biases and norms are not 0 and 1 either
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@contextmanager
def trainer_and_sampler(
    folder: Path, *, tied: bool = True, **changes: Any
) -> Iterator[SimpleNamespace]:
    """A torch engine, and vLLM with its weights; lora__rank and so on as settings.

    With model__dtype=bfloat16 the float32 weights of the engine are bfloat16 numbers at first.
    """
    from transformers import AutoTokenizer

    from rlcli.rollout.vllm.engine import VllmSettings
    from rlcli.rollout.vllm.local_sampler import VllmSampler

    save_model(folder, tied=tied)
    settings = config(**changes)
    is_half = settings.model.dtype == "bfloat16"
    engine = make_engine(folder, settings, autocast_dtype=torch.bfloat16 if is_half else None)
    if is_half:
        with torch.no_grad():
            for parameter in engine.policy.model.parameters():
                parameter.copy_(parameter.bfloat16())
    sampler = VllmSampler(
        VllmSettings(
            model_dir=folder,
            dtype="bfloat16" if is_half else "float32",
            device="cpu",
            max_tokens=96,
            max_num_seqs=32,
            temperature=settings.rollout.temperature,
            lora_rank=settings.lora.rank,
        ),
        AutoTokenizer.from_pretrained(folder),
        eos_token_ids=EOS,
        lora_alpha=settings.lora.alpha,
        weights=engine.weights,
    )
    sampler.load_weights(engine.weights(), version=0)
    try:
        with collected(prints=False) as told:
            yield SimpleNamespace(engine=engine, sampler=sampler, config=settings, told=told)
    finally:
        sampler.close()


def prompts(count: int = 4, *, length: int = 5) -> list[Prompt]:
    """Questions of tokens; their lengths differ."""
    return [
        Prompt(
            id=str(i), messages=(), token_ids=tuple(range(20 + 7 * i, 20 + 7 * i + length + i % 3))
        )
        for i in range(count)
    ]


@torch.no_grad()
def move(engine: TorchEngine, *, by: float = 0.03, seed: int = 0) -> None:
    """Other weights, of those that are trained."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in engine.policy.model.parameters():
        if parameter.requires_grad:
            parameter.add_(by * torch.randn(parameter.shape, generator=draw))


def reference(pair: SimpleNamespace) -> Any:
    """The trainer's policy as transformers runs it, from what the trainer saves."""
    from transformers import AutoModelForCausalLM

    with TemporaryDirectory() as folder:
        path = Path(folder)
        uses_lora = pair.config.lora.rank > 0
        pair.engine.save_model(path, pair.sampler.tokenizer, merge_lora=uses_lora)
        path = path / "merged" if uses_lora else path
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def logits_of(model: Any, rollout: Rollout) -> torch.Tensor:
    """[T, V] before each token of the response."""
    question = rollout.prompt.token_ids
    ids = torch.tensor([[*question, *rollout.token_ids]])
    return model(ids).logits[0, len(question) - 1 : -1].float()


def tokens(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for rollout in rollouts]


def largest_gap(model: Any, rollouts: list[Rollout], temperature: float = 1.0) -> float:
    """Between the sampler's log-probs and those of the model's logits / temperature."""
    largest = 0.0
    for rollout in rollouts:
        own = (logits_of(model, rollout) / temperature).log_softmax(-1)
        own = own.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        largest = max(largest, float((own - torch.tensor(rollout.logprobs)).abs().max()))
    return largest


def check_is_the_trainers(pair: SimpleNamespace, *, version: int) -> None:
    """It samples from the trainer's policy, and is sure of the same tokens."""
    model, temperature = reference(pair), pair.config.rollout.temperature
    params = SamplingParams(n=3, max_tokens=24, temperature=temperature)
    rollouts = pair.sampler.generate(prompts(), params, seed=version)
    assert largest_gap(model, rollouts, temperature) < 1e-4
    assert {rollout.policy_version for rollout in rollouts} == {version}
    greedy = SamplingParams(n=1, max_tokens=24, temperature=0.0)
    for rollout in pair.sampler.generate(prompts(), greedy, seed=version):
        assert tuple(logits_of(model, rollout).argmax(-1).tolist()) == rollout.token_ids
        assert rollout.greedy


def check_how_rollouts_end(sampler: Any) -> None:
    """At any end token or at the limit, each told as it ends."""
    seen: list[int] = []
    rollouts = sampler.generate(
        prompts(),
        SamplingParams(n=16, max_tokens=24),
        seed=3,
        on_finish=lambda index, rollout: seen.append(index),
    )
    assert sorted(seen) == list(range(64))
    assert seen != sorted(seen)
    assert [rollout.prompt.id for rollout in rollouts] == [str(i // 16) for i in range(64)]
    for rollout in rollouts:
        assert len(rollout.logprobs) == len(rollout.token_ids) <= 24
        assert not set(rollout.token_ids[:-1]) & set(EOS)
        ended = rollout.token_ids[-1] in EOS
        assert rollout.finish_reason == ("stop" if ended else "length")
        assert ended or len(rollout.token_ids) == 24
    assert {r.token_ids[-1] for r in rollouts if r.finish_reason == "stop"} == set(EOS)


def check_what_draws_depend_on(sampler: Any) -> None:
    """Seed and place alone."""
    params = SamplingParams(n=3, max_tokens=24)
    everything = tokens(sampler.generate(prompts(), params, seed=5))
    some = sampler.generate(prompts()[2:], params, seed=5, prompt_indices=[2, 3])
    assert tokens(some) == everything[6:]
    assert tokens(sampler.generate(prompts(), params, seed=5)) == everything
    assert tokens(sampler.generate(prompts(), params, seed=6)) != everything
    assert len(set(everything[:3])) == 3


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
