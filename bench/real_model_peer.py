"""TRL's side of real_model.py: GRPO for a number of CPU seconds; prints a JSON line at the end.

python bench/real_model_peer.py MODEL TRAIN.jsonl OUT_FOLDER --cpu_s N --max_tokens N [--lora]

Runs in an environment of its own with TRL 1.16.0. As rlcli's side: 16 prompts x 8 answers and one
update a step, a constant learning rate, no KL, float32, the same score. Everything else is what
TRL chooses. The clock starts when training does; a step that begins within the budget is finished.
The model that was trained lies in OUT_FOLDER afterwards, adapters merged.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from real_tasks import ANSWERS, LORA_ALPHA, LORA_LR, LORA_RANK, LR, PROMPTS, compute_score
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Budget(TrainerCallback):
    """Ends training after `cpu_s` CPU seconds."""

    def __init__(self, cpu_s: float) -> None:
        self.cpu_s, self.begun_s, self.used_s, self.rewards = cpu_s, 0.0, 0.0, []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun_s = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.used_s = time.process_time() - self.begun_s
        print(f"step {state.global_step}: {self.used_s:.0f} CPU s", flush=True)
        control.should_training_stop = self.used_s >= self.cpu_s

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "reward" in (logs or {}):
            self.rewards.append(logs["reward"])


def score(completions: list[Any], ground_truth: list[str], **_: Any) -> list[float]:
    """The reward of rlcli's side."""
    texts = [completion[0]["content"] for completion in completions]
    return [compute_score("", *pair) for pair in zip(texts, ground_truth, strict=True)]


def build(args: argparse.Namespace, budget: Budget) -> Any:
    """TRL's trainer."""
    micro_batches = PROMPTS * ANSWERS // args.micro_rows
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    config = GRPOConfig(
        output_dir=str(args.out / "trainer"),
        per_device_train_batch_size=args.micro_rows,
        gradient_accumulation_steps=micro_batches,
        steps_per_generation=micro_batches,
        num_generations=ANSWERS,
        max_completion_length=args.max_tokens,
        beta=0.0,
        temperature=1.0,
        learning_rate=LORA_LR if args.lora else LR,
        lr_scheduler_type="constant",
        max_steps=1000,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        reward_funcs=score,
        processing_class=AutoTokenizer.from_pretrained(args.model, padding_side="left"),
        peft_config=adapters() if args.lora else None,
        callbacks=[budget],
    )


def adapters() -> Any:
    """LoRA on all linear layers."""
    from peft import LoraConfig

    return LoraConfig(
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def main() -> None:
    """Train, save, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu_s", type=float, required=True)
    parser.add_argument("--max_tokens", type=int, required=True)
    parser.add_argument("--micro_rows", type=int, default=16)
    parser.add_argument("--lora", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    budget = Budget(args.cpu_s)
    trainer = build(args, budget)
    trainer.train()
    model: Any = trainer.model
    (model.merge_and_unload() if args.lora else model).save_pretrained(args.out)
    trainer.processing_class.save_pretrained(args.out)
    steps = trainer.state.global_step
    print(json.dumps({"steps": steps, "cpu_s": budget.used_s, "rewards": budget.rewards}))


if __name__ == "__main__":
    main()
