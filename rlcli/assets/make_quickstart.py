"""Writes the quickstart model and the built-in data: `python -m rlcli.assets.make_quickstart`.

The model is a 0.8M-parameter Qwen2 that continues `47+8=` with a sum. Its warm-up corpus is
careless on purpose: only RIGHT_SHARE of the answers are right, the rest are off by one. So it
solves about 30 % of the sums it never saw, sampled or greedy, and RL has something to find: which
of its three habits is paid. The rows written to disk hold right answers only, and those of
sums/val.jsonl are in no warm-up batch. One CPU type and torch version gives the same bytes.
"""

import argparse
import copy
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

PAD_ID, EOS_ID, IGNORED = 1, 3, -100
SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
MAX_TOKENS = len("99+9=108") + 1
NUM_VAL_SUMS, NUM_MATH_ROWS, NUM_MATH_VAL_ROWS = 200, 200, 50
RIGHT_SHARE = 0.31
SOLVE_RATE, SLACKS = 0.30, (0.015, 0.03)  # sampled, greedy
MIN_STEPS, MAX_STEPS, CHECK_EVERY = 300, 1500, 5
BATCH_SIZE, LEARNING_RATE = 128, 1e-3
MATH_TEMPLATES = (
    ("sum", "计算 {} + {} 的结果"),
    ("difference", "计算 {} - {} 的结果"),
    ("product", "计算 {} × {} 的结果"),
    ("quotient", "计算 {} ÷ {} 的结果"),
    ("percent", "计算 {1} 的 {0}% 是多少"),
    ("product_plus", "计算 {} × {} + {} 的结果"),
    ("sum", "小明有 {} 张邮票，又买了 {} 张，他现在一共有多少张邮票？"),
    ("difference", "图书馆有 {} 本书，借出了 {} 本，还剩多少本？"),
    ("quotient", "把 {} 颗糖平均分给 {} 个小朋友，每人分到多少颗？"),
    ("sum", "What is {} + {}?"),
    ("difference", "Mia has {} stickers and gives away {}. How many stickers are left?"),
    ("product", "A hall has {} rows of {} seats. How many seats does it have?"),
    ("quotient", "{} eggs are packed in boxes of {}. How many boxes are filled?"),
    ("percent", "A school of {1} students has {0}% girls. How many girls are there?"),
    ("product_plus", "A ticket costs {} dollars. What do {} tickets and a {} dollar snack cost?"),
)
Row = dict[str, str]
Batch = tuple[torch.Tensor, torch.Tensor]  # ids_BT, targets_BT


def build_row(prompt: str, answer: int, data_source: str) -> Row:
    """A data row in the users' form."""
    return {"prompt": prompt, "ground_truth": str(answer), "data_source": data_source}


def split_sums() -> tuple[list[Row], list[Row]]:
    """800 training rows and 200 held-out rows: every a+b with a in 0..99, b in 0..9, once."""
    pairs = [(a, b) for a in range(100) for b in range(10)]
    rows = [build_row(f"{a}+{b}=", a + b, "sums") for a, b in pairs]
    random.Random(0).shuffle(rows)
    return rows[NUM_VAL_SUMS:], rows[:NUM_VAL_SUMS]


def build_math_rows() -> tuple[list[Row], list[Row]]:
    """200 training rows and 50 others: no prompt twice, positive integers, templates in turn."""
    rng, rows = random.Random(0), dict[str, Row]()
    while len(rows) < NUM_MATH_ROWS + NUM_MATH_VAL_ROWS:
        kind, template = MATH_TEMPLATES[len(rows) % len(MATH_TEMPLATES)]
        a, b, c = rng.randint(12, 200), rng.randint(3, 12), rng.randint(6, 99)
        numbers, answer = {
            "sum": ((a, c), a + c),
            "difference": ((a + c, c), a),
            "product": ((a, b), a * b),
            "quotient": ((a * b, b), a),
            "percent": ((5 * b, 20 * c), b * c),
            "product_plus": ((a, b, c), a * b + c),
        }[kind]
        prompt = template.format(*numbers)
        rows[prompt] = build_row(prompt, answer, "math_reasoning")
    shuffled = rng.sample(list(rows.values()), len(rows))
    return shuffled[:NUM_MATH_ROWS], shuffled[NUM_MATH_ROWS:]


def build_tokenizer() -> Qwen2Tokenizer:
    """One token per byte, so that any text survives the round trip; no chat template."""
    # AutoTokenizer loads any qwen2 folder as this class, whatever was saved (transformers 5.23).
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        unk_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[PAD_ID],
        eos_token=SPECIAL_TOKENS[EOS_ID],
        extra_special_tokens=[SPECIAL_TOKENS[2]],
        padding_side="left",
        model_max_length=512,
    )


def build_model(seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of 821,888 parameters in float32."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=260,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return Qwen2ForCausalLM(config)


def encode_rows(tokenizer: Qwen2Tokenizer, rows: list[Row]) -> Batch:
    """Right-padded tokens, and the answer token to predict at each place, or IGNORED."""
    ids_BT = torch.full((len(rows), MAX_TOKENS), PAD_ID)
    targets_BT = torch.full((len(rows), MAX_TOKENS), IGNORED)
    for i, row in enumerate(rows):
        prompt = tokenizer.encode(row["prompt"])
        tokens = [*prompt, *tokenizer.encode(row["ground_truth"]), EOS_ID]
        ids_BT[i, : len(tokens)] = torch.tensor(tokens)
        targets_BT[i, len(prompt) - 1 : len(tokens) - 1] = torch.tensor(tokens[len(prompt) :])
    return ids_BT, targets_BT


def draw_careless_row(row: Row, rng: random.Random) -> Row:
    """The row with a right answer at RIGHT_SHARE, else one above or below (never negative)."""
    total = int(row["ground_truth"])
    if rng.random() >= RIGHT_SHARE:
        total += rng.choice((-1, 1)) if total else 1
    return row | {"ground_truth": str(total)}


@torch.no_grad()
def measure_solve_rates(model: Qwen2ForCausalLM, batch: Batch) -> tuple[float, float]:
    """Exact expected pass@1 at temperature 1.0, and greedy accuracy: no sampling noise."""
    ids_BT, targets_BT = batch
    logprobs_BTV = model(input_ids=ids_BT).logits.float().log_softmax(-1)
    is_answer_BT = targets_BT != IGNORED
    target_logprobs_BT = logprobs_BTV.gather(2, targets_BT.clamp(min=0)[..., None])[..., 0]
    solve_prob_B = (target_logprobs_BT * is_answer_BT).sum(1).exp()
    is_greedy_B = ((logprobs_BTV.argmax(-1) == targets_BT) | ~is_answer_BT).all(1)
    return solve_prob_B.mean().item(), is_greedy_B.float().mean().item()


def warm_up(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """The bfloat16 model of the first check that finds both held-out rates near SOLVE_RATE."""
    train_rows, val_rows = split_sums()
    held_out, rng, model = encode_rows(tokenizer, val_rows), random.Random(seed), build_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    for step in range(1, MAX_STEPS + 1):
        rows = [draw_careless_row(row, rng) for row in rng.choices(train_rows, k=BATCH_SIZE)]
        ids_BT, targets_BT = encode_rows(tokenizer, rows)
        loss = F.cross_entropy(model(input_ids=ids_BT).logits.mT, targets_BT, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step < MIN_STEPS or step % CHECK_EVERY:
            continue
        rounded = copy.deepcopy(model).bfloat16()
        rates = measure_solve_rates(rounded, held_out)
        print("step {}: held-out pass@1 {:.3f} sampled, {:.3f} greedy".format(step, *rates))
        if all(abs(rate - SOLVE_RATE) < slack for rate, slack in zip(rates, SLACKS, strict=True)):
            return rounded
    raise RuntimeError(
        f"warm-up needs held-out pass@1 within {SLACKS} (sampled, greedy) of {SOLVE_RATE}, "
        f"found none in {MAX_STEPS} steps. Try another --seed."
    )


def save_rows(rows: list[Row], path: Path) -> None:
    """One row per line: JSON lines for .jsonl, a JSON list for .json."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Writes quickstart/, sums/ and math_reasoning*.json under --out (default: this folder)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=1, help="seed of the weights and batches")
    args = parser.parse_args()
    torch.set_num_threads(1)  # more threads sum in another order, and are no faster at this size
    names = ("sums/train.jsonl", "sums/val.jsonl", "math_reasoning.json", "math_reasoning_val.json")
    for name, rows in zip(names, (*split_sums(), *build_math_rows()), strict=True):
        save_rows(rows, args.out / name)
    tokenizer = build_tokenizer()
    warm_up(tokenizer, args.seed).save_pretrained(args.out / "quickstart")
    tokenizer.save_pretrained(args.out / "quickstart")


if __name__ == "__main__":
    main()
