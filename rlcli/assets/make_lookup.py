"""Writes the model and the data of quickstart-tools: `python -m rlcli.assets.make_lookup`.

The task is `k42=`: a digit that only the tool `look` knows. The warm-up corpus is careless on
purpose: CALL_SHARE of its answers call the tool, `[look(k=42)]`, and COPY_SHARE of those repeat its
digit; the others guess. So the model solves about 15 % of the keys, and RL has something to
find: to call the tool, and to trust it. No held-out key is in a warm-up batch.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from rlcli.assets.lookup.tools import look
from rlcli.assets.make_quickstart import (
    EOS_ID,
    IGNORED,
    PAD_ID,
    Row,
    build_model,
    build_tokenizer,
    save_rows,
)

NUM_KEYS, NUM_VAL_KEYS = 1000, 100
CALL_SHARE, COPY_SHARE = 0.3, 0.5
BATCH_SIZE, LEARNING_RATE, NUM_STEPS = 64, 1e-3, 250
Part = tuple[list[int], bool]
"""Tokens, and whether the model writes them."""


def split_keys() -> tuple[list[Row], list[Row]]:
    """900 keys to train on and 100 held-out ones."""
    keys = list(range(NUM_KEYS))
    random.Random(0).shuffle(keys)
    rows = [
        {"prompt": f"k{key}=", "ground_truth": str(look(key)), "data_source": "exact"}
        for key in keys
    ]
    return rows[NUM_VAL_KEYS:], rows[:NUM_VAL_KEYS]


def draw_episode(tokenizer: Qwen2Tokenizer, key: int, rng: random.Random) -> list[Part]:
    """A careless answer to one key; its digits are drawn, so that none is learned by heart."""
    prompt = (tokenizer.encode(f"k{key}="), False)
    digit = str(rng.randrange(10))
    if rng.random() >= CALL_SHARE:
        return [prompt, ([*tokenizer.encode(digit), EOS_ID], True)]
    written = digit if rng.random() < COPY_SHARE else str(rng.randrange(10))
    return [
        prompt,
        ([*tokenizer.encode(f"[look(k={key})]"), EOS_ID], True),
        (tokenizer.encode(digit), False),
        ([*tokenizer.encode(written), EOS_ID], True),
    ]


def warm_up(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """The bfloat16 model after NUM_STEPS batches of careless episodes."""
    model, rng = build_model(seed), random.Random(seed)
    keys = [int(row["prompt"][1:-1]) for row in split_keys()[0]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    for step in range(1, NUM_STEPS + 1):
        episodes = [draw_episode(tokenizer, rng.choice(keys), rng) for _ in range(BATCH_SIZE)]
        width = max(sum(len(tokens) for tokens, _ in parts) for parts in episodes)
        ids_BT = torch.full((BATCH_SIZE, width), PAD_ID)
        targets_BT = torch.full((BATCH_SIZE, width), IGNORED)
        for row, parts in enumerate(episodes):
            tokens = [token for some, _ in parts for token in some]
            is_own = [own for some, own in parts for _ in some]
            ids_BT[row, : len(tokens)] = torch.tensor(tokens)
            for at in range(1, len(tokens)):
                if is_own[at]:
                    targets_BT[row, at - 1] = tokens[at]
        loss = F.cross_entropy(model(input_ids=ids_BT).logits.mT, targets_BT, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.bfloat16()


def main() -> None:
    """Writes lookup/ under --out (default: this folder)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=1, help="seed of the weights and batches")
    args = parser.parse_args()
    torch.set_num_threads(1)  # more threads sum in another order, and are no faster at this size
    for name, rows in zip(("train.jsonl", "val.jsonl"), split_keys(), strict=True):
        save_rows(rows, args.out / "lookup" / name)
    tokenizer = build_tokenizer()
    warm_up(tokenizer, args.seed).save_pretrained(args.out / "lookup")
    tokenizer.save_pretrained(args.out / "lookup")


if __name__ == "__main__":
    main()
