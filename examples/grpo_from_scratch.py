"""GRPO in one file: what `rlcli train --preset quickstart` does, without everything around it.

python examples/grpo_from_scratch.py             # learns the built-in sums, about a minute on a CPU
python examples/grpo_from_scratch.py --steps 5 --model MODEL --data FILE.jsonl

One step, in five lines (`main` has them in this order):

    sample    G responses to each of P prompts from the policy pi_old
    score     each response: 1.0 for the right answer, else 0.0
    estimate  the advantage of a response: its score minus its group's mean, over the group's std
    update    pi by a few gradient steps on the clipped policy gradient
    repeat    with the new policy

Shapes: P prompts, G responses to each, B = P * G rows, S positions of prompt and response, T of
these that predict a response token, V the vocabulary. Sources: GRPO arXiv 2402.03300, the clipped
loss arXiv 1707.06347.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlcli.data.prompts import encode_prompts
from rlcli.data.readers import Reading, read_scan
from rlcli.hub import find_model
from rlcli.models.causal_lm import eos_token_ids, load_tokenizer, read_model_config
from rlcli.models.forward import CausalLM
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.native import NativeSampler
from rlcli.types import Prompt, Rollout

STD_EPS = 1e-6


# -- score ---------------------------------------------------------------------------------------


def reward(response: str, ground_truth: object) -> float:
    """1.0 if the response is the reference answer, else 0.0. Replace it by your own."""
    return float(response.strip() == str(ground_truth))


# -- estimate ------------------------------------------------------------------------------------


def group_advantages(rewards_B: Tensor, group_size: int) -> Tensor:
    """(reward - group mean) / group std, [B]. Rows of a group are adjacent.

    A group whose rewards are all alike gets 0: no response in it is better than another.
    """
    rewards_PG = rewards_B.view(-1, group_size)
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    return (centred_PG / (rewards_PG.std(dim=1, keepdim=True) + STD_EPS)).flatten()


# -- update --------------------------------------------------------------------------------------


def pad_rows(rollouts: Sequence[Rollout], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(token ids, attention mask, response mask), each [B, S], of prompts with their responses."""
    rows = [(rollout.prompt.token_ids, rollout.token_ids) for rollout in rollouts]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids_BS = torch.full((len(rows), width), pad_token_id)
    attention_BS = torch.zeros(len(rows), width, dtype=torch.long)
    response_BS = torch.zeros(len(rows), width)
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids_BS[row, :end] = torch.tensor([*prompt, *response])
        attention_BS[row, :end] = 1
        response_BS[row, len(prompt) : end] = 1.0
    return ids_BS, attention_BS, response_BS


def token_logprobs(model: PreTrainedModel, ids_BS: Tensor, attention_BS: Tensor) -> Tensor:
    """Log-probability of each token given those before it, [B, S - 1]: that of token s is at s - 1.

    With the temperature at 1, these are the probabilities that the sampler drew from.
    """
    logits_BSV = model(input_ids=ids_BS, attention_mask=attention_BS, use_cache=False).logits
    logprobs_BSV = logits_BSV[:, :-1].float().log_softmax(dim=-1)
    return logprobs_BSV.gather(2, ids_BS[:, 1:, None])[..., 0]


def clipped_loss(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, clip: float
) -> Tensor:
    """-min(A r, A clip(r, 1 - clip, 1 + clip)) of each token, where r = pi / pi_old.

    The minimum takes the gain out of moving further once r has left the range; a move that made
    things worse is not cut.
    """
    ratio_BT = (logprobs_BT - old_logprobs_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - clip, 1 + clip)
    return -torch.minimum(advantages_BT * ratio_BT, advantages_BT * clipped_BT)


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the response tokens of all rows: every token has the same weight."""
    return (values_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)


def update(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rollouts: Sequence[Rollout],
    advantages_B: Tensor,
    *,
    pad_token_id: int,
    mini_batch: int,
    clip: float,
    grad_clip: float,
) -> float:
    """One pass over the rollouts, an optimizer step for every `mini_batch` rows; the mean loss."""
    ids_BS, attention_BS, response_BS = pad_rows(rollouts, pad_token_id)
    mask_BT = response_BS[:, 1:]
    with torch.no_grad():  # pi_old is the policy before the first optimizer step, for all of them
        parts = [
            token_logprobs(model, ids_BS[rows], attention_BS[rows])
            for rows in torch.arange(len(rollouts)).split(mini_batch)
        ]
        old_logprobs_BT = torch.cat(parts)
    losses = []
    for rows in torch.arange(len(rollouts)).split(mini_batch):
        logprobs_BT = token_logprobs(model, ids_BS[rows], attention_BS[rows])
        loss_BT = clipped_loss(
            logprobs_BT, old_logprobs_BT[rows], advantages_B[rows, None], clip=clip
        )
        loss = masked_mean(loss_BT, mask_BT[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


# -- sample, and the loop ------------------------------------------------------------------------


def load_prompts(source: str, tokenizer: object, max_tokens: int) -> list[Prompt]:
    """The prompts of a data file or a built-in set, as token ids."""
    encoded = encode_prompts(
        read_scan([source], Reading()).rows,
        tokenizer,  # type: ignore[arg-type]
        max_prompt_tokens=max_tokens,
        filter_overlong=True,
        truncation="error",
    )
    return list(encoded.prompts)


def batches(prompts: Sequence[Prompt], size: int, seed: int) -> Iterator[list[Prompt]]:
    """Prompts of each step without end, in a new order for every pass."""
    generator = random.Random(seed)
    waiting: list[Prompt] = []
    while True:
        while len(waiting) < size:
            waiting += generator.sample(prompts, len(prompts))
        yield waiting[:size]
        waiting = waiting[size:]


def accuracy(sampler: NativeSampler, prompts: Sequence[Prompt], max_tokens: int) -> float:
    """Share of prompts whose sampled response is right, at temperature 1."""
    rollouts = sampler.generate(prompts, SamplingParams(n=1, max_tokens=max_tokens), seed=0)
    return sum(reward(r.text, r.prompt.ground_truth) for r in rollouts) / len(rollouts)


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="GRPO in one file.")
    parser.add_argument("--model", default="builtin:quickstart", help="directory or hub name")
    parser.add_argument("--data", default="builtin:sums", help="training prompts")
    parser.add_argument("--val-data", default="builtin:sums_val", help="held-out prompts")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=64, help="P, prompts per step")
    parser.add_argument("--group-size", type=int, default=8, help="G, responses per prompt")
    parser.add_argument("--mini-batch", type=int, default=128, help="rows per optimizer step")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--grad-clip", type=float, default=1.0)
    parser.add_argument("--max-prompt-tokens", type=int, default=512)
    parser.add_argument("--max-response-tokens", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> tuple[float, float]:
    """Train; (accuracy before, accuracy after) on the held-out prompts."""
    options = read_options(words)
    torch.manual_seed(options.seed)

    folder = str(find_model(options.model))
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lm = CausalLM(model=model, packed=False, source_dtype=torch.float32)
    ends = eos_token_ids(folder, tokenizer, read_model_config(folder))
    pad = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    sampler = NativeSampler(
        lm, tokenizer, eos_token_ids=ends, pad_token_id=pad, max_num_seqs=512, shares_weights=True
    )
    prompts = load_prompts(options.data, tokenizer, options.max_prompt_tokens)
    held_out = load_prompts(options.val_data, tokenizer, options.max_prompt_tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0)
    params = SamplingParams(n=options.group_size, max_tokens=options.max_response_tokens)

    before = accuracy(sampler, held_out, options.max_response_tokens)
    print(f"held-out accuracy before: {before:.1%}")
    steps = zip(range(options.steps), batches(prompts, options.prompts, options.seed), strict=False)
    for step, batch in steps:
        begun = time.perf_counter()
        rollouts = sampler.generate(batch, params, seed=options.seed + step)
        rewards_B = torch.tensor([reward(r.text, r.prompt.ground_truth) for r in rollouts])
        advantages_B = group_advantages(rewards_B, options.group_size)
        loss = update(
            model,
            optimizer,
            rollouts,
            advantages_B,
            pad_token_id=pad,
            mini_batch=options.mini_batch,
            clip=options.clip,
            grad_clip=options.grad_clip,
        )
        seconds = time.perf_counter() - begun
        print(f"step {step + 1}: reward {rewards_B.mean():.3f}, loss {loss:.4f}, {seconds:.1f} s")
    after = accuracy(sampler, held_out, options.max_response_tokens)
    print(f"held-out accuracy after: {after:.1%}")
    return before, after


if __name__ == "__main__":
    main()
