"""rollout.stop: where a response ends, which tokens are kept, and what the reward reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from native_parts import load, prompts, sampler, trainer_logprobs

from rlcli.rollout.base import SamplingParams, finished_rollout
from rlcli.rollout.stop import StopTexts
from rlcli.rollout.vllm.requests import answered
from rlcli.types import Prompt, Rollout

LONG = {"n": 4, "max_tokens": 60}


def decode(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(list(ids)))


def common_texts(tokenizer: Any, rollouts: list[Rollout]) -> list[str]:
    """A letter and a longer text that some free responses hold in their middle."""
    texts = [r.text[5:] for r in rollouts]
    letter = next(char for text in texts for char in text if char.isalnum())
    pairs = (text[i : i + 2] for text in texts for i in range(len(text) - 1))
    return [letter, next(pair for pair in pairs if "\ufffd" not in pair and letter not in pair)]


@pytest.mark.parametrize("packed", [True, False])
def test_a_response_ends_with_the_token_that_completes_a_stop_text(
    tiny_model: Path, packed: bool
) -> None:
    lm, tokenizer = load(tiny_model, packed=packed)
    free = sampler(lm, tokenizer).generate(prompts(6), SamplingParams(**LONG), seed=1)
    stop = tuple(common_texts(tokenizer, free))
    params = SamplingParams(**LONG, stop=stop)
    stopped = sampler(lm, tokenizer).generate(prompts(6), params, seed=1)
    num_cut = 0
    for before, after in zip(free, stopped, strict=True):
        assert after.token_ids == before.token_ids[: len(after.token_ids)]
        assert not any(text in after.text for text in stop)
        if after.token_ids == before.token_ids and after.text == before.text:
            continue
        num_cut += 1
        whole = decode(tokenizer, after.token_ids)
        shown = tokenizer.decode(list(after.token_ids), skip_special_tokens=True)
        assert any(text in whole for text in stop)
        assert not any(text in decode(tokenizer, after.token_ids[:-1]) for text in stop)
        assert after.finish_reason == "stop"
        assert shown.startswith(after.text)
    assert num_cut > 3
    said = torch.tensor([x for r in stopped for x in r.logprobs])
    torch.testing.assert_close(said, trainer_logprobs(lm, stopped, 1.0), atol=1e-5, rtol=1e-5)


def test_vllm_keeps_the_tokens_that_the_native_sampler_keeps(tiny_model: Path) -> None:
    lm, tokenizer = load(tiny_model)
    free = sampler(lm, tokenizer).generate(prompts(6), SamplingParams(**LONG), seed=1)
    stop = tuple(common_texts(tokenizer, free))
    stopped = sampler(lm, tokenizer).generate(prompts(6), SamplingParams(**LONG, stop=stop), seed=1)
    for before, after in zip(free, stopped, strict=True):
        cut = answered(
            tokenizer,
            before.prompt,
            before.token_ids,
            before.logprobs,
            told=before.finish_reason,
            version=0,
            params=SamplingParams(**LONG, stop=stop),
        )
        assert (cut.token_ids, cut.text) == (after.token_ids, after.text)
        assert cut.finish_reason == after.finish_reason
        assert cut.logprobs == pytest.approx(after.logprobs, abs=1e-5)


class Words:
    """A tokenizer whose tokens are given texts; the last is a special token."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def decode(self, ids: Any, *, skip_special_tokens: bool) -> str:
        last = len(self.words) - 1
        return "".join(self.words[i] for i in ids if not (skip_special_tokens and i == last))


TOKENS = Words("a", "b</", "answer", ">c", " ", "<|end|>")
PROMPT = Prompt(id="x", messages=(), token_ids=(0,))


@pytest.mark.parametrize(
    ("ids", "stop", "kept", "text"),
    [
        ((0, 1, 2, 3, 0), "</answer>", 4, "ab"),
        ((0, 1, 2, 0), "</answer>", None, ""),
        ((4, 0, 0), "aa", 3, " "),
        ((0, 5, 0), "<|end|>", 2, "a"),
        ((0, 0, 1, 2), "b", 3, "aa"),
        ((1, 2, 3), "b</answer>c", 3, ""),
    ],
)
def test_tokens_up_to_the_first_stop_text_are_kept(
    ids: tuple[int, ...], stop: str, kept: int | None, text: str
) -> None:
    stops = StopTexts(TOKENS, [stop])
    assert stops.num_kept(ids) == kept
    if kept is not None:
        assert stops.ends(ids[:kept])
        rollout = finished_rollout(
            TOKENS,
            PROMPT,
            ids[:kept],
            [0.0] * kept,
            finish_reason="stop",
            policy_version=0,
            params=SamplingParams(n=1, max_tokens=9, stop=(stop,)),
        )
        assert rollout.text == text


def test_an_end_token_still_ends_a_response_that_could_stop(tiny_model: Path) -> None:
    _, tokenizer = load(tiny_model)
    ids = [*tokenizer("the answer is", add_special_tokens=False)["input_ids"], 2]
    rollout = finished_rollout(
        tokenizer,
        PROMPT,
        ids,
        [0.0] * len(ids),
        finish_reason="stop",
        policy_version=0,
        params=SamplingParams(n=1, max_tokens=9, stop=("###",)),
    )
    assert rollout.text == "the answer is"
