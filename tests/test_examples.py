"""The examples run, and do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rlcli.algos.advantages import grpo
from rlcli.algos.losses import clip

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def from_scratch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("from_scratch", EXAMPLES / "grpo_from_scratch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_grpo_from_scratch_learns(
    from_scratch: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = from_scratch.main(["--steps", "8"])
    assert after > before + 0.05
    assert "step 8: reward" in capsys.readouterr().out


def test_its_advantages_are_those_of_grpo(from_scratch: ModuleType) -> None:
    rewards_B = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5])
    mask_BT = torch.ones(8, 1)
    group_B = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    known = grpo(
        rewards_B[:, None], mask_BT, group_B=group_B, valid_B=torch.ones(8), scale_by_std=True
    )
    found_B = from_scratch.group_advantages(rewards_B, 4)
    # mean 0.25, deviations 0.75 and three times -0.25: std 0.5
    assert found_B.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0], abs=1e-4)
    torch.testing.assert_close(found_B[:, None], known.advantages_BT, atol=1e-4, rtol=0)


def test_its_loss_is_the_clipped_one(from_scratch: ModuleType) -> None:
    old_BT = torch.full((1, 4), -1.0)
    ratios = torch.tensor([[1.5, 0.5, 1.5, 0.5]])
    advantages_BT = torch.tensor([[2.0, 2.0, -2.0, -2.0]])
    loss_BT = from_scratch.clipped_loss(old_BT + ratios.log(), old_BT, advantages_BT, clip=0.2)
    torch.testing.assert_close(loss_BT, torch.tensor([[-2.4, -1.0, 3.0, 1.6]]))
    known = clip(
        old_BT + ratios.log(),
        old_BT,
        advantages_BT,
        torch.ones(1, 4),
        clip_low=0.2,
        clip_high=0.2,
        clip_ratio_c=10.0,
    )
    torch.testing.assert_close(loss_BT, known.loss_BT)


def test_its_log_probs_are_the_samplers(from_scratch: ModuleType) -> None:
    from transformers import AutoModelForCausalLM

    from rlcli.hub import find_model
    from rlcli.models.causal_lm import load_tokenizer
    from rlcli.models.forward import CausalLM
    from rlcli.rollout.base import SamplingParams
    from rlcli.rollout.native import NativeSampler

    folder = str(find_model("builtin:quickstart"))
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lm = CausalLM(model=model, packed=False, source_dtype=torch.float32)
    ends = (tokenizer.eos_token_id,)
    sampler = NativeSampler(
        lm,
        tokenizer,
        eos_token_ids=ends,
        pad_token_id=ends[0],
        max_num_seqs=64,
        shares_weights=True,
    )
    prompts = from_scratch.load_prompts("builtin:sums_val", tokenizer, 16)[:8]
    rollouts = sampler.generate(prompts, SamplingParams(n=2, max_tokens=6), seed=1)
    ids_BS, attention_BS, response_BS = from_scratch.pad_rows(rollouts, ends[0])
    with torch.no_grad():
        logprobs_BT = from_scratch.token_logprobs(model, ids_BS, attention_BS)
    for rollout, row_T, mask_T in zip(rollouts, logprobs_BT, response_BS[:, 1:], strict=True):
        assert row_T[mask_T == 1].tolist() == pytest.approx(rollout.logprobs, abs=1e-4)


def test_grpo_from_scratch_uses_public_names_in_at_most_300_lines() -> None:
    text = (EXAMPLES / "grpo_from_scratch.py").read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    assert "import _" not in text
