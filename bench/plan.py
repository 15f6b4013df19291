"""`rlcli plan` against real runs: predicted and measured growth of peak memory on the CPU.

python bench/plan.py [--only NAME ...] [--out FILE]

Every case is an `rlcli train` process of two steps on a model with random weights. Measured is its
peak resident memory minus that of a process that imports the same modules and loads nothing.
Prints a Markdown table; exits 1 when fewer than 6 of the cases are within 20 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcli.config.resolver import resolve
from rlcli.plan import plan_run

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
TOLERANCE, ENOUGH = 0.2, 6
IMPORTS = """
import rlcli.cli.main, rlcli.trainer.session, rlcli.trainer.build, rlcli.trainer.loop
import rlcli.engines.torch_engine, rlcli.rollout.native, rlcli.algos.algorithm
import rlcli.engines.lora, rlcli.engines.critic, pyarrow
from transformers import LlamaForCausalLM, Qwen2ForCausalLM
"""
MODELS = {
    "14M tied": {
        "kind": "Qwen2", "vocab_size": 32000, "hidden_size": 256, "intermediate_size": 1024,
        "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "55M untied": {
        "kind": "Qwen2", "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1408,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    "31M deep": {
        "kind": "Llama", "vocab_size": 8000, "hidden_size": 384, "intermediate_size": 1536,
        "num_hidden_layers": 12, "num_attention_heads": 6, "num_key_value_heads": 6,
        "tie_word_embeddings": True,
    },
    "20M, norms on heads": {
        "kind": "Qwen3", "vocab_size": 16000, "hidden_size": 320, "intermediate_size": 960,
        "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 64, "tie_word_embeddings": True,
    },
}  # fmt: skip
COMMON = [
    "data.val=[]", f"reward.fn={ROOT}/bench/random_reward.py:compute_score",
    "train.max_steps=2", "model.dtype=float32",
    "train.prompts_per_step=8", "train.mini_batch_prompts=8", "rollout.n=4",
    "data.max_prompt_tokens=32", "data.max_response_tokens=64", "run.save_every=-1",
]  # fmt: skip
NO_KL, KL = "algorithm.kl_loss=false", "algorithm.kl_loss=true"
LONG = ["data.max_prompt_tokens=64", "data.max_response_tokens=256", "rollout.n=2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration."""

    name: str
    model: str
    settings: list[str]
    algorithm: str = "grpo"


CASES = [
    Case(name="GRPO, KL, one micro-batch", model="14M tied", settings=[KL]),
    Case(name="GRPO, 512 tokens", model="14M tied",
         settings=[NO_KL, "train.tokens_per_micro_batch=512"]),
    Case(name="GRPO, 1,024 tokens", model="55M untied",
         settings=[NO_KL, "train.tokens_per_micro_batch=1024"]),
    Case(name="GRPO, KL, 1,024 tokens", model="31M deep",
         settings=[KL, "train.tokens_per_micro_batch=1024"]),
    Case(name="GRPO, KL, LoRA", model="55M untied",
         settings=[KL, "lora.rank=16", "train.tokens_per_micro_batch=1024"]),
    Case(name="PPO, critic, KL, 1,024 tokens", model="31M deep", algorithm="ppo",
         settings=["train.tokens_per_micro_batch=1024"]),
    Case(name="GRPO, checkpointing, 2,048 tokens", model="31M deep",
         settings=[NO_KL, "model.gradient_checkpointing=true",
                   "train.tokens_per_micro_batch=2048"]),
    Case(name="GRPO, bfloat16, 1,024 tokens", model="55M untied",
         settings=[NO_KL, "model.dtype=bfloat16", "train.tokens_per_micro_batch=1024"]),
    Case(name="GRPO, bfloat16, LoRA, 1,024 tokens", model="31M deep",
         settings=[NO_KL, "model.dtype=bfloat16", "lora.rank=16",
                   "train.tokens_per_micro_batch=1024"]),
    Case(name="RLOO, 256-token responses", model="31M deep", algorithm="rloo",
         settings=[*LONG, "train.tokens_per_micro_batch=2048"]),
    Case(name="GRPO, 768 rows sampled at once", model="14M tied",
         settings=[NO_KL, "train.prompts_per_step=48", "rollout.n=16", "rollout.max_num_seqs=768",
                   "data.max_response_tokens=16", "train.tokens_per_micro_batch=512",
                   "train.mini_batch_prompts=2"]),
    Case(name="GRPO, KL, chunked head, 4,096 tokens", model="14M tied",
         settings=[KL, "train.prompts_per_step=16", "train.mini_batch_prompts=16",
                   "train.tokens_per_micro_batch=4096"]),
    # no number of the model was fitted to the ones below
    Case(name="RLOO, LoRA, 2,048 tokens", model="20M, norms on heads", algorithm="rloo",
         settings=["lora.rank=8", "train.tokens_per_micro_batch=2048",
                   "train.prompts_per_step=16", "train.mini_batch_prompts=16"]),
    Case(name="PPO, checkpointing, 1,500 tokens", model="20M, norms on heads", algorithm="ppo",
         settings=["model.gradient_checkpointing=true", "train.tokens_per_micro_batch=1500"]),
    Case(name="GRPO, 8 rows, 128-token responses", model="20M, norms on heads",
         settings=[NO_KL, "data.max_response_tokens=128", "train.dynamic_batch=false",
                   "train.micro_batch_size=8", "train.ppo_epochs=2"]),
]  # fmt: skip


def make_model(folder: Path, shape: dict[str, Any]) -> None:
    """A model of random weights with the quickstart's tokenizer, made in its own process."""
    code = (
        "import json, shutil, sys, torch, transformers\n"
        "folder, shape = sys.argv[1], json.loads(sys.argv[2])\n"
        "config_class = getattr(transformers, shape.pop('kind') + 'Config')\n"
        "config = config_class(pad_token_id=1, eos_token_id=3,\n"
        "    bos_token_id=None, max_position_embeddings=4096, **shape)\n"
        "torch.manual_seed(0)\n"
        "transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)\n"
    )
    arguments = [sys.executable, "-c", code, str(folder), json.dumps(shape)]
    subprocess.run(arguments, check=True, env=ENV, stderr=subprocess.DEVNULL)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        source = ROOT / "rlcli" / "assets" / "quickstart" / name
        (folder / name).write_bytes(source.read_bytes())


def write_prompts(file: Path, *, length: int, rows: int = 128) -> None:
    """Sums with leading zeros, each of `length` tokens: one a character."""
    lines = []
    for number in range(rows):
        text = f"{number}+{number}=".rjust(length, "0")
        lines.append(json.dumps({"prompt": text, "ground_truth": "1", "data_source": "sums"}))
    file.write_text("\n".join(lines) + "\n")


def peak_bytes(command: list[str], folder: Path) -> int:
    """Peak resident memory of a process that ends well."""
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, env=ENV, stdout=log, stderr=log, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} exited {process.returncode}:\n{log.read()}")
    return usage.ru_maxrss * 1024


def settings_of(case: Case, data: Path) -> list[str]:
    """Overrides of a case; of two for one setting the last wins."""
    return [*COMMON, *case.settings, f"data.train=['{data}']"]


def predict(case: Case, model: Path, data: Path) -> tuple[str, float]:
    """(largest phase, its predicted peak in bytes)."""
    resolved = resolve(
        flags={"model": str(model)},
        overrides=settings_of(case, data),
        files=[],
        env={},
        algo=case.algorithm,
        preset=None,
    )
    plan = plan_run(resolved, model.parent)
    return plan.largest.name, plan.largest.peak_gib * 2**30


def measure(case: Case, model: Path, data: Path) -> int:
    """Peak resident bytes of the run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "rlcli.cli.main", "train", "--algo", case.algorithm,
            "--model", str(model), "--output_dir", f"{folder}/run", *settings_of(case, data),
        ]  # fmt: skip
        return peak_bytes(command, Path(folder))


def run_case(case: Case, folder: Path, base: int) -> tuple[str, float]:
    """(row of the table, predicted / measured)."""
    model = folder / case.model.replace(" ", "-").replace(",", "")
    if not model.is_dir():
        make_model(model, MODELS[case.model])
    length = next(
        int(text.partition("=")[2])
        for text in reversed([*COMMON, *case.settings])
        if text.startswith("data.max_prompt_tokens=")
    )
    data = folder / f"prompts-{length}.jsonl"
    write_prompts(data, length=length)
    phase, predicted = predict(case, model, data)
    measured = measure(case, model, data) - base
    ratio = predicted / measured
    sizes = f"{predicted / 2**20:,.0f} | {measured / 2**20:,.0f}"
    return f"| {case.name} | {case.model} | {phase} | {sizes} | {ratio:.2f} |", ratio


def main() -> None:
    """Run the cases, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="parts of names of cases")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    args = parser.parse_args()
    cases = [c for c in CASES if not args.only or any(part in c.name for part in args.only)]
    lines = [
        "| run | model | largest phase | predicted MiB | measured MiB | ratio |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = peak_bytes([sys.executable, "-c", IMPORTS], folder)
        for case in cases:
            line, ratio = run_case(case, folder, base)
            print(line, flush=True)
            lines.append(line)
            ratios.append(ratio)
    good = sum(abs(ratio - 1) <= TOLERANCE for ratio in ratios)
    words = (
        f"{good} of {len(ratios)} within {TOLERANCE:.0%}; imports alone: {base / 2**20:,.0f} MiB"
    )
    print(f"\n{words}")
    if args.out:
        args.out.write_text("\n".join([*lines, "", words, ""]))
    sys.exit(0 if good >= min(ENOUGH, len(cases)) else 1)


if __name__ == "__main__":
    main()
