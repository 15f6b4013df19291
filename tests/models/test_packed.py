"""Flat tokens must be invisible: the same log-probs, gradients and samples as one row at a time."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from packed_parts import GROUP, PROMPTS, RESPONSES, all_at_once, build

from rlcli.models.causal_lm import enable_gradient_checkpointing, prepare
from rlcli.models.packed_attention import GroupLayout, round_up_tokens

ARCHITECTURES = [
    ("Qwen2", {}),
    ("Qwen3", {"head_dim": 8}),
    ("Llama", {}),
    ("Mistral", {"head_dim": 8, "sliding_window": 4}),
    ("Gemma", {"head_dim": 8}),
    ("Gemma3Text", {"head_dim": 8, "sliding_window": 4}),
    ("Phi3", {}),
]


def one_by_one(model: transformers.PreTrainedModel) -> torch.Tensor:
    """Log-probs of every response token from a plain forward per row."""
    out = []
    for row, response in enumerate(RESPONSES):
        prompt = PROMPTS[GROUP[row]]
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        out.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    return torch.cat(out)


@pytest.mark.parametrize(("kind", "extra"), ARCHITECTURES)
def test_packed_logprobs_and_gradients_equal_one_row_at_a_time(
    kind: str, extra: dict[str, object]
) -> None:
    model = build(kind, extra)
    expected = one_by_one(model)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    lm = prepare(model)
    assert lm.packed, lm.notes
    actual = all_at_once(lm)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    (actual * weights).sum().backward()
    got = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(got, gradients, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    lm = prepare(build("Qwen2", {}))
    all_at_once(lm).sum().backward()
    expected = [p.grad.clone() for p in lm.model.parameters() if p.grad is not None]
    lm.model.zero_grad()
    enable_gradient_checkpointing(lm.model)
    lm.model.train()
    all_at_once(lm).sum().backward()
    got = [p.grad for p in lm.model.parameters() if p.grad is not None]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_a_model_with_soft_capped_attention_falls_back_and_says_why() -> None:
    lm = prepare(build("Gemma2", {"head_dim": 8, "sliding_window": 4}))
    assert not lm.packed
    assert "softcap" in lm.notes[0]


def test_dropout_of_the_base_model_is_off_in_training() -> None:
    model = build("Qwen2", {"attention_dropout": 0.5})
    lm = prepare(model)
    lm.model.train()
    assert lm.packed
    torch.testing.assert_close(all_at_once(lm), all_at_once(lm), atol=0, rtol=0)


def test_the_last_token_of_a_response_is_not_computed() -> None:
    layout = GroupLayout([3, 2], [4, 1, 0, 2], [0, 0, 1, 1], torch.device("cpu"))
    assert layout.position_ids.tolist() == [[0, 1, 2, 0, 1, 3, 4, 5, 2]]
    assert layout.predicts_N.tolist() == [2, 5, 6, 7, 2, 4, 8]


@pytest.mark.parametrize(
    ("tokens", "padded"), [(0, 0), (64, 64), (65, 96), (2000, 2016), (5001, 5120), (40000, 40960)]
)
def test_numbers_of_tokens_are_few_and_waste_little(tokens: int, padded: int) -> None:
    assert round_up_tokens(tokens) == padded


def test_padding_is_computed_and_changes_nothing() -> None:
    torch.manual_seed(3)
    plain = build("Qwen2", {})
    lm = prepare(copy.deepcopy(plain))
    prompts, responses = [[5] * 40, [9] * 30], [[7] * 20, [8] * 3]
    layout = GroupLayout([40, 30], [20, 3], [0, 1], torch.device("cpu"))
    assert layout.position_ids.shape == (1, 96)
    flat = torch.tensor([t for row in [*prompts, *(r[:-1] for r in responses)] for t in row])
    hidden = lm.hidden(flat, layout.position_ids, layout)
    assert hidden.isfinite().all()
    found = lm.logits(hidden[layout.predicts_N]).split([20, 3])
    for prompt, response, logits in zip(prompts, responses, found, strict=True):
        alone = plain(input_ids=torch.tensor([prompt + response])).logits[0]
        torch.testing.assert_close(logits, alone[len(prompt) - 1 : -1], atol=1e-5, rtol=1e-5)
