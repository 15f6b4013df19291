"""The work that both sides of vs_trl.py do, and the watch that both are timed with.

A tiny Qwen2 answers sums; every answer ends by EOS after a length drawn beforehand, so that both
sides sample and train on as many tokens. No two answers have the same score: no group is tied,
and no advantage is 0. Imported by TRL's side and by the scoring processes too, so it needs
only the standard library until a model or a watch is asked for.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
PAD, EOS = 1, 3
LEARNING_RATE = 1e-4
PARAMETERS = {
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A few steps of one algorithm. kl, lora_rank 0: without; micro_rows 0: a side's default.

    Answers have `shortest` to `longest` tokens, EOS included. The first `left_out` steps are not
    reported.
    """

    algorithm: str = "grpo"
    prompts: int = 16
    generations: int = 8
    shortest: int = 64
    longest: int = 64
    prompt_chars: int = 32
    kl: float = 0.0
    lora_rank: int = 0
    dtype: str = "float32"
    micro_rows: int = 0
    steps: int = 2
    left_out: int = 3

    @classmethod
    def read(cls, description: str) -> tuple[Work, Path]:
        """The work and the model folder that the command line names."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("model", type=Path)
        for each in fields(cls):
            parser.add_argument(f"--{each.name}", type=type(each.default), default=each.default)
        given = vars(parser.parse_args())
        return cls(**{each.name: given[each.name] for each in fields(cls)}), given["model"]

    def words(self) -> list[str]:
        """What `read` reads."""
        return [f"--{name}={value}" for name, value in asdict(self).items()]

    @property
    def rollouts(self) -> int:
        """Answers per step."""
        return self.prompts * self.generations

    def lengths(self, step: int) -> list[int]:
        """Tokens of every answer of a step, prompts in order, a group's answers adjacent."""
        draw = random.Random(step)
        return [draw.randint(self.shortest, self.longest) for _ in range(self.rollouts)]

    def sums(self) -> list[dict[str, str]]:
        """Prompts such as `12+7+33=` for all steps, in the order of training, and their sums.

        A step more than is needed: neither side shall come to the end of an epoch.
        """
        draw = random.Random(0)
        number = self.prompts * (self.left_out + self.steps + 1)
        return [_sum(draw, self.prompt_chars) for _ in range(number)]


def _sum(draw: random.Random, max_chars: int) -> dict[str, str]:
    chars = draw.randint(6, max_chars)
    terms = [draw.randint(0, 99)]
    while len("+".join(map(str, terms))) + 4 <= chars:
        terms.append(draw.randint(0, 99))
    return {"prompt": "+".join(map(str, terms)) + "=", "ground_truth": str(sum(terms))}


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None
) -> float:
    """A number in [0, 1) that no two answers share, as cheap as a rule can be."""
    return zlib.crc32(solution_str.encode()) / 2**32


def save_model(folder: Path) -> None:
    """A Qwen2 of 4.8 M random weights, and a tokenizer with one token per character."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    ends = {"eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": None}
    Qwen2ForCausalLM(Qwen2Config(**PARAMETERS, **ends)).save_pretrained(folder)
    alphabet = [*SPECIAL, *map(chr, range(32, 127)), "\n"]
    core = Tokenizer(
        models.BPE(
            vocab={text: index for index, text in enumerate(alphabet)},
            merges=[],
            unk_token=SPECIAL[0],
        )
    )
    core.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=SPECIAL[EOS],
        pad_token=SPECIAL[PAD],
        additional_special_tokens=[SPECIAL[2]],
    ).save_pretrained(folder)


def force_ends(scores_RV: Any, ends_R: Any) -> Any:
    """The scores under which rows of `ends_R` choose EOS and the others no special token."""
    forced = scores_RV.clone()
    forced[:, : len(SPECIAL)] = float("-inf")
    forced[ends_R] = float("-inf")
    forced[ends_R, EOS] = 0.0
    return forced


@dataclass(slots=True)
class Report:
    """One process, step by step. updated: weights that the optimizers moved, summed over calls."""

    cpu_s: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    response_tokens: list[int] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    updated: list[int] = field(default_factory=list)
    peak_mib: float = 0.0

    def line(self, left_out: int) -> str:
        """JSON, without the first steps."""
        values = asdict(self)
        values["phases"] = {name: each[left_out:] for name, each in self.phases.items()}
        for name in ("cpu_s", "response_tokens", "prompt_tokens", "updated"):
            values[name] = values[name][left_out:]
        return json.dumps(values)


class Watch:
    """Fills a report. CPU seconds and peak memory include those of child processes."""

    def __init__(self) -> None:
        import psutil
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.report = Report()
        self._process = psutil.Process()
        self._begun = 0.0
        self._response_tokens = self._prompt_tokens = self._updated = 0
        self._phases: dict[str, float] = {}
        register_optimizer_step_post_hook(self._count_update)

    def begin(self) -> None:
        """A step starts."""
        self._response_tokens = self._prompt_tokens = self._updated = 0
        self._phases = {}
        children_s = self._children_s()
        self._begun = children_s + time.process_time()

    def end(self) -> None:
        """A step ends."""
        now = time.process_time()
        report = self.report
        report.cpu_s.append(now + self._children_s() - self._begun)
        report.response_tokens.append(self._response_tokens)
        report.prompt_tokens.append(self._prompt_tokens)
        report.updated.append(self._updated)
        for name, seconds in self._phases.items():
            earlier = report.phases.setdefault(name, [])
            earlier += [0.0] * (len(report.cpu_s) - 1 - len(earlier)) + [seconds]
        pids = [self._process.pid, *(child.pid for child in self._children())]
        report.peak_mib = max(report.peak_mib, sum(map(_peak_mib, pids)))

    def count(self, *, response_tokens: int, prompt_tokens: int) -> None:
        """Tokens sampled in this step, and those of the prompts, once per answer."""
        self._response_tokens += response_tokens
        self._prompt_tokens += prompt_tokens

    def time(self, owner: Any, method: str, phase: str | Callable[[], str]) -> None:
        """Count the CPU seconds of `owner.method` towards `phase`."""
        inner = getattr(owner, method)

        @wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            name = phase if isinstance(phase, str) else phase()
            begun = time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                taken = time.process_time() - begun
                self._phases[name] = self._phases.get(name, 0.0) + taken

        setattr(owner, method, timed)

    def _count_update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        groups = optimizer.param_groups
        self._updated += sum(
            p.numel() for group in groups for p in group["params"] if p.grad is not None
        )

    def _children(self) -> list[Any]:
        return self._process.children(recursive=True)

    def _children_s(self) -> float:
        times = [child.cpu_times() for child in self._children()]
        return sum(each.user + each.system for each in times)


def _peak_mib(pid: int) -> float:
    """The most that a process ever held; getrusage would count what its parent held before exec."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
