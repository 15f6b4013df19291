"""TRL's side of vs_trl.py: the fixed work in its own trainers; prints its report as a JSON line.

python bench/peer_step.py MODEL_FOLDER [--algorithm grpo --shortest 8 --micro_rows 64 ...]

Runs in an environment of its own and imports nothing of rlcli. GRPO and RLOO need TRL 1.16.0;
PPO needs 1.12.0, the last one that has it. Set against TRL's defaults, so that nothing but the
work is timed: no evaluation, checkpoint, log or progress bar; no gradient checkpointing, which
would cost it time; float32 unless the work says bfloat16 (autocast, as `bf16=True` is); prompts
in the order of the file; one update per step; temperature 1. PPO passes over its answers once
instead of four times, and samples all of them in one call instead of 64 at a time. Everything
else is what TRL chooses: the loss, AdamW, attention (sdpa), the cache, generate(). A static
cache (cache_implementation="static") was tried: sampling took as long.
"""

from __future__ import annotations

import os
import tempfile
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from fixed_work import EOS, LEARNING_RATE, PAD, Watch, Work, compute_score, force_ends
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)


class ForcedEnds:
    """A logits processor: row i chooses EOS as its token number lengths[i], and not before."""

    def __init__(self, lengths: list[int], width: int) -> None:
        self.lengths_R, self.width = torch.tensor(lengths), width

    def __call__(self, ids_RT: Any, scores_RV: Any) -> Any:
        return force_ends(scores_RV, self.lengths_R == ids_RT.shape[1] - self.width + 1)


class Steps(TrainerCallback):
    """Tells the watch where a step ends and the next begins."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.watch.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.watch.end()
        self.watch.begin()


def force_lengths(model: Any, work: Work, watch: Watch) -> None:
    """Have `model.generate` end its rows where the work says so, and count their tokens.

    Scores, where they are asked for, are the plain logits: PPO takes its log-probs from them.
    """
    plain_generate = model.generate
    step = -1

    def generate(*args: Any, **kwargs: Any) -> Any:
        nonlocal step
        step += 1
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        lengths = work.lengths(step)
        assert len(lengths) == len(ids), "a step is sampled in several calls"
        kwargs["logits_processor"] = [ForcedEnds(lengths, ids.shape[1])]
        needs_scores = bool(kwargs.get("output_scores"))
        if needs_scores:
            kwargs |= {"output_scores": False, "output_logits": True}
        out = plain_generate(*args, **kwargs)
        if needs_scores:
            out.scores = out.logits
        answers = (out.sequences if needs_scores else out)[:, ids.shape[1] :]
        found = (answers != PAD).sum(1).tolist()
        assert found == lengths, "answers are not as long as they were meant to be"
        watch.count(response_tokens=sum(found), prompt_tokens=int(mask.sum()))
        return out

    model.generate = generate


def arguments(work: Work, folder: str) -> dict[str, Any]:
    """What all three trainers are told."""
    micro_rows = work.micro_rows or 64
    assert work.rollouts % micro_rows == 0, f"{work.rollouts} rollouts in {micro_rows}s"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": micro_rows,
        "gradient_accumulation_steps": work.rollouts // micro_rows,
        "temperature": 1.0,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "bf16": work.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }


def adapters(work: Work) -> Any:
    """LoRA on all linear layers, or none."""
    if not work.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=work.lora_rank,
        lora_alpha=2 * work.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def group_trainer(work: Work, model: Any, tokenizer: Any, watch: Watch, folder: str) -> Any:
    """TRL's GRPO or RLOO trainer."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    is_grpo = work.algorithm == "grpo"
    config = (GRPOConfig if is_grpo else RLOOConfig)(
        **arguments(work, folder),
        steps_per_generation=work.rollouts // (work.micro_rows or 64),
        num_generations=work.generations,
        max_completion_length=work.longest,
        beta=work.kl,
        max_steps=work.left_out + work.steps,
        shuffle_dataset=False,
    )

    def score(completions: list[str], ground_truth: list[str], **_: Any) -> list[float]:
        pairs = zip(completions, ground_truth, strict=True)
        return [compute_score("", completion, truth) for completion, truth in pairs]

    trainer: Any = (GRPOTrainer if is_grpo else RLOOTrainer)(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(work.sums()),
        reward_funcs=score,
        processing_class=tokenizer,
        peft_config=adapters(work),
        callbacks=[Steps(watch)],
    )
    force_lengths(trainer.model.get_base_model() if work.lora_rank else trainer.model, work, watch)
    watch.time(trainer, "_generate_single_turn", "sampling")
    watch.time(
        trainer,
        "_get_per_token_logps_and_entropies",
        lambda: "forward" if torch.is_grad_enabled() else "log-probs without gradients",
    )
    watch.time(trainer.accelerator, "backward", "backward")
    return trainer


class TextScore(torch.nn.Module):
    """What TRL's PPO takes for a reward model: a backbone's hidden states, and a head on them.

    Here the only hidden state of a row is the score of its text, so that it costs as good as
    nothing.
    """

    base_model_prefix = "backbone"

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.score = torch.nn.Identity()

    def backbone(self, input_ids: Any, **_: Any) -> Any:
        """[R, T, 1], the same at all T positions."""
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        scores_R = torch.tensor([compute_score("", text, "") for text in texts])
        shape = (*input_ids.shape, 1)
        return SimpleNamespace(hidden_states=[scores_R[:, None, None].expand(shape)])


def ppo_trainer(work: Work, model: Any, tokenizer: Any, watch: Watch, folder: str) -> Any:
    """TRL's PPO trainer, every prompt repeated as often as it is to be answered."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    texts = [row["prompt"] for row in work.sums() for _ in range(work.generations)]
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    value_model = AutoModelForSequenceClassification.from_pretrained(
        model.name_or_path, num_labels=1, dtype=torch.float32
    )
    trainer: Any = PPOTrainer(
        args=PPOConfig(
            **arguments(work, folder),
            total_episodes=work.rollouts * (work.left_out + work.steps),
            response_length=work.longest,
            stop_token="eos",
            num_ppo_epochs=1,
            num_mini_batches=1,
            kl_coef=work.kl,
            local_rollout_forward_batch_size=work.rollouts,
            num_sample_generations=0,
        ),
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=TextScore(tokenizer),
        value_model=value_model,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:1]),
        callbacks=[Steps(watch)],
    )
    in_order = torch.utils.data.DataLoader(
        trainer.train_dataset, batch_size=work.rollouts, collate_fn=trainer.data_collator
    )
    trainer.dataloader = trainer.accelerator.prepare(in_order)
    trainer.remove_callback(PrinterCallback)
    force_lengths(model, work, watch)
    watch.time(model, "generate", "sampling")
    watch.time(
        trainer.model,
        "forward",
        lambda: "forward" if torch.is_grad_enabled() else "log-probs without gradients",
    )
    watch.time(trainer.ref_model, "forward", "log-probs without gradients")
    watch.time(trainer.accelerator, "backward", "backward")
    return trainer


def main() -> None:
    """Parse, run, print."""
    work, folder = Work.read((__doc__ or "").splitlines()[0])
    watch = Watch()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    assert tokenizer.eos_token_id == EOS, tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    build = ppo_trainer if work.algorithm == "ppo" else group_trainer
    with tempfile.TemporaryDirectory() as name:
        trainer = build(work, model, tokenizer, watch, name)
        trainer.train()
    print(watch.report.line(work.left_out))


if __name__ == "__main__":
    main()
