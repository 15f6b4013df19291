"""Rows with an environment's tokens among the policy's: what is computed, and what is learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_parts import CPU, config, make_batch, make_engine

from rlcli.algos.algorithm import Algorithm
from rlcli.engines.micro_batches import index_rows, pack_rows
from rlcli.models.causal_lm import load_causal_lm
from rlcli.rollout.collate import ScoredRollouts, collate
from rlcli.types import Batch, Prompt, Reward, Rollout


def with_holes(batch: Batch) -> Batch:
    """About a third of the tokens are the environment's; every row begins with the policy's."""
    draw = torch.Generator().manual_seed(5)
    own_BT = torch.rand(batch.response_mask_BT.shape, generator=draw) > 0.35
    own_BT[:, 0] = True
    mask_BT = batch.response_mask_BT * own_BT
    return replace(
        batch, response_mask_BT=mask_BT, rollout_logprobs_BT=batch.rollout_logprobs_BT * mask_BT
    )


def plain_logprobs(model: Path, batch: Batch) -> torch.Tensor:
    """[B, T] by transformers' own forward, one row after the other."""
    lm = load_causal_lm(str(model), dtype=torch.float32, device=CPU)
    lm.model.set_attn_implementation("sdpa")
    out = torch.zeros(batch.token_ids_BT.shape)
    for row, group in enumerate(batch.group_B.tolist()):
        prompt, length = batch.prompt_ids[group], int(batch.lengths_B[row])
        ids = torch.tensor([[*prompt, *batch.token_ids_BT[row, :length].tolist()]])
        with torch.no_grad():
            logprobs = lm.model(input_ids=ids).logits[0].float().log_softmax(-1)
        at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        out[row, :length] = logprobs[at, ids[0, len(prompt) :]]
    return out


def test_a_rollouts_mask_becomes_the_response_mask() -> None:
    """Two turns, `5 6 | 7 8 | 9`, beside a single turn `5 6`: 3 and 2 of the tokens count."""
    prompt = Prompt(id="a", messages=(), token_ids=(3, 4))
    common = {"prompt": prompt, "text": "", "finish_reason": "stop", "policy_version": 0}
    long = Rollout(
        token_ids=(5, 6, 7, 8, 9), logprobs=(-1, -2, 0, 0, -3), mask=(1, 1, 0, 0, 1), **common
    )
    short = Rollout(token_ids=(5, 6), logprobs=(-1, -2), **common)
    rewards = [Reward(value=1.0), Reward(value=0.0)]
    collected = ScoredRollouts(rollouts=[long, short], rewards=rewards, greedy={})
    batch = collate(collected, needs=frozenset())
    assert (long.num_tokens, short.num_tokens) == (3, 2)
    assert batch.lengths_B.tolist() == [5, 2]
    assert batch.response_mask_BT.tolist() == [[1, 1, 0, 0, 1], [1, 1, 0, 0, 0]]
    assert batch.token_ids_BT.tolist() == [[5, 6, 7, 8, 9], [5, 6, 0, 0, 0]]


def test_an_episode_out_of_turns_counts_as_cut() -> None:
    prompt = Prompt(id="a", messages=(), token_ids=(3,))
    reasons = ("stop", "env", "turns", "length")
    rollouts = [
        Rollout(
            prompt=prompt,
            text="",
            token_ids=(5,),
            logprobs=(-1.0,),
            finish_reason=reason,
            policy_version=0,
        )
        for reason in reasons
    ]
    rewards = [Reward(value=1.0)] * 4
    batch = collate(
        ScoredRollouts(rollouts=rollouts, rewards=rewards, greedy={}), needs=frozenset()
    )
    assert batch.truncated_B.tolist() == [False, False, True, True]


@pytest.mark.parametrize("packed", [True, False])
def test_only_the_policys_tokens_are_computed_and_right(tiny_model: Path, packed: bool) -> None:
    batch = with_holes(make_batch())
    engine = make_engine(tiny_model, config(algorithm__correction="off"))
    if not packed:
        engine.policy.packed = False
        engine.policy.model.set_attn_implementation("sdpa")
    found_BT = engine.response_logprobs(batch)
    expected_BT = plain_logprobs(tiny_model, batch) * batch.response_mask_BT
    assert torch.allclose(found_BT, expected_BT, atol=1e-5)
    rows = pack_rows(batch, range(len(batch.lengths_B)), index_rows(batch), CPU)
    assert len(rows.targets_N) == int(batch.response_mask_BT.sum())


def gradient(model: Path, batch: Batch, *, packed: bool = True, **changes: object) -> torch.Tensor:
    settings = config(algorithm__correction="off", **changes)
    engine = make_engine(model, settings)
    if not packed:
        engine.policy.packed = False
        engine.policy.model.set_attn_implementation("sdpa")
    algorithm = Algorithm(settings, corrects_sampler=False)
    annotated = engine.annotate(batch, algorithm)
    advantages = algorithm.advantages(annotated, all_reduce=engine.all_reduce)
    found: list[torch.Tensor] = []
    engine._step = lambda *_: found.append(  # type: ignore[method-assign, assignment]
        torch.cat([p.grad.flatten() for p in engine.policy.model.parameters()])  # type: ignore[union-attr]
    )
    engine.update(annotated, advantages, algorithm, step=0)
    return found[0]


def test_the_gradient_does_not_depend_on_micro_batches_or_packing(tiny_model: Path) -> None:
    batch = with_holes(make_batch())
    whole = gradient(tiny_model, batch)
    assert float(whole.norm()) > 0
    small = gradient(tiny_model, batch, train__tokens_per_micro_batch=24)
    padded = gradient(tiny_model, batch, packed=False)
    assert torch.allclose(whole, small, atol=1e-6)
    assert torch.allclose(whole, padded, atol=1e-5)


def test_what_the_environment_wrote_is_read_and_not_learned(tiny_model: Path) -> None:
    """The gradient is that of the policy's tokens alone, given all tokens before them."""
    batch = with_holes(make_batch())
    settings = config(algorithm__correction="off")
    algorithm = Algorithm(settings, corrects_sampler=False)
    engine = make_engine(tiny_model, settings)
    advantages = algorithm.advantages(
        engine.annotate(batch, algorithm), all_reduce=engine.all_reduce
    )
    lm = load_causal_lm(str(tiny_model), dtype=torch.float32, device=CPU)
    lm.model.set_attn_implementation("sdpa")
    assert advantages.loss_mask_BT is not None
    weight_BT = advantages.advantages_BT * advantages.loss_mask_BT
    loss = torch.zeros(())
    for row, group in enumerate(batch.group_B.tolist()):
        prompt, length = batch.prompt_ids[group], int(batch.lengths_B[row])
        ids = torch.tensor([[*prompt, *batch.token_ids_BT[row, :length].tolist()]])
        logprobs = lm.model(input_ids=ids).logits[0].float().log_softmax(-1)
        at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        loss = loss - (logprobs[at, ids[0, len(prompt) :]] * weight_BT[row, :length]).sum()
    (loss / advantages.loss_mask_BT.sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in lm.model.parameters()])  # type: ignore[union-attr]
    assert torch.allclose(gradient(tiny_model, batch), expected, atol=1e-5)
