"""The native sampler: its words about its own samples are the trainer's, to rounding."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from native_parts import load, prompts, sampler, trainer_logprobs
from transformers.modeling_outputs import CausalLMOutputWithPast

from rlcli.rollout.base import SamplingParams
from rlcli.types import Rollout


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_sampler_logprobs_equal_the_trainers(
    tiny_model: Path, packed: bool, temperature: float
) -> None:
    lm, tokenizer = load(tiny_model, packed=packed)
    params = SamplingParams(n=4, max_tokens=80, temperature=temperature, top_p=0.95)
    rollouts = sampler(lm, tokenizer).generate(prompts(6), params, seed=1)
    said = torch.tensor([x for r in rollouts for x in r.logprobs])
    torch.testing.assert_close(
        said, trainer_logprobs(lm, rollouts, temperature), atol=1e-5, rtol=1e-5
    )


class WrittenForOlderTransformers(torch.nn.Module):
    """A model as its checkpoint's own code has it: the cache goes by its name before 5.24."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.name = "cache" if "cache" in inspect.signature(model.forward).parameters else None

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(
        self, input_ids: Any, attention_mask: Any, position_ids: Any, use_cache: bool,
        past_key_values: Any = None,
    ) -> Any:  # fmt: skip
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{self.name or "past_key_values": past_key_values},
        )
        cache = out[self.name or "past_key_values"]
        return CausalLMOutputWithPast(logits=out.logits, past_key_values=cache)


def test_the_cache_goes_by_the_name_that_the_model_knows(tiny_model: Path) -> None:
    lm, tokenizer = load(tiny_model, packed=False)
    params = SamplingParams(n=2, max_tokens=20)
    expected = sampler(lm, tokenizer).generate(prompts(4), params, seed=1)
    lm.model = WrittenForOlderTransformers(lm.model)  # type: ignore[assignment]
    older = sampler(lm, tokenizer).generate(prompts(4), params, seed=1)
    assert [r.token_ids for r in older] == [r.token_ids for r in expected]


def test_llama_too(tiny_llama: Path) -> None:
    lm, tokenizer = load(tiny_llama)
    params = SamplingParams(n=2, max_tokens=40)
    rollouts = sampler(lm, tokenizer).generate(prompts(5), params, seed=1)
    said = torch.tensor([x for r in rollouts for x in r.logprobs])
    torch.testing.assert_close(said, trainer_logprobs(lm, rollouts, 1.0), atol=1e-5, rtol=1e-5)


def test_greedy_rollouts_equal_generate(tiny_model: Path) -> None:
    lm, tokenizer = load(tiny_model)
    params = SamplingParams(n=1, max_tokens=30, temperature=0.0)
    rollouts = sampler(lm, tokenizer, eos_token_ids=(2,)).generate(prompts(8), params, seed=0)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    for prompt, rollout in zip(prompts(8), rollouts, strict=True):
        ids = torch.tensor([prompt.token_ids])
        out = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False
        )
        assert tuple(out[0, len(prompt.token_ids) :].tolist()) == rollout.token_ids
        assert rollout.greedy


def test_same_seed_same_rollouts_whatever_is_sampled_beside(tiny_model: Path) -> None:
    lm, tokenizer = load(tiny_model)
    params = SamplingParams(n=4, max_tokens=20)
    first = sampler(lm, tokenizer).generate(prompts(4), params, seed=5)
    again = sampler(lm, tokenizer).generate(prompts(4), params, seed=5)
    other = sampler(lm, tokenizer).generate(prompts(4), params, seed=6)
    assert [r.token_ids for r in first] == [r.token_ids for r in again]
    assert [r.token_ids for r in first] != [r.token_ids for r in other]


def test_every_eos_id_ends_a_rollout_and_the_text_leaves_it_out(tiny_model: Path) -> None:
    lm, tokenizer = load(tiny_model)
    ends = tuple(range(2, 60))
    params = SamplingParams(n=8, max_tokens=64)
    rollouts = sampler(lm, tokenizer, eos_token_ids=ends).generate(prompts(4), params, seed=0)
    stopped = [r for r in rollouts if r.finish_reason == "stop"]
    assert len({r.token_ids[-1] for r in stopped}) > 1
    for rollout in stopped:
        assert rollout.token_ids[-1] in ends
        assert not set(rollout.token_ids[:-1]) & set(ends)
        assert rollout.text == tokenizer.decode(rollout.token_ids[:-1], skip_special_tokens=True)


def test_the_length_limit_is_reported(tiny_model: Path) -> None:
    lm, tokenizer = load(tiny_model)
    params = SamplingParams(n=2, max_tokens=3)
    rollouts = sampler(lm, tokenizer, eos_token_ids=(2,)).generate(prompts(3), params, seed=0)
    for rollout in rollouts:
        ended = rollout.token_ids[-1] == 2
        assert rollout.finish_reason == ("stop" if ended else "length")
        assert len(rollout.token_ids) == len(rollout.logprobs) <= 3


def test_rollouts_are_handed_out_as_they_finish_and_returned_in_order(tiny_model: Path) -> None:
    lm, tokenizer = load(tiny_model)
    seen: dict[int, Rollout] = {}
    params = SamplingParams(n=3, max_tokens=30)
    some = prompts(10)
    rollouts = sampler(lm, tokenizer, max_num_seqs=9).generate(
        some, params, seed=0, on_finish=lambda i, r: seen.update({i: r})
    )
    assert [seen[i] for i in range(30)] == rollouts
    assert [r.prompt.id for r in rollouts] == [p.id for p in some for _ in range(3)]
