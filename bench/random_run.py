"""Steps of a real run whose work is fixed: random weights, prompts and responses of given lengths.

The run is built as `rlcli train` builds it, from settings; only the lengths of the responses are
forced and the rewards are random numbers, so that no group has equal ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from rlcli.rollout.native import _Call
    from rlcli.trainer.run import Run

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "rlcli" / "assets" / "quickstart"
EOS, OTHER = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Qwen2 model with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    @property
    def matrix_parameters(self) -> int:
        """Weights of the layers' matrices, embeddings apart."""
        head = self.hidden // self.heads
        attention = self.hidden * head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every step does. Each response has from `shortest` to `response_tokens` tokens."""

    prompts: int
    n: int
    prompt_tokens: int
    response_tokens: int
    shortest: int | None = None

    def lengths(self) -> list[int]:
        """Tokens of every response, the same in every step."""
        low = self.response_tokens if self.shortest is None else self.shortest
        draw = random.Random(0)
        return [draw.randint(low, self.response_tokens) for _ in range(self.prompts * self.n)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Seconds of a step's parts; `load`: the sampler gets the new weights."""

    sample: float
    annotate: float
    update: float
    load: float

    @property
    def step(self) -> float:
        """All of them."""
        return self.sample + self.annotate + self.update + self.load


def write_model(shape: Shape, folder: Path, *, dtype: str = "float32") -> Path:
    """A model directory with random weights and the quickstart's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TOKENIZER / name).read_bytes())
    return folder


def write_prompts(work: Work, file: Path) -> Path:
    """As many different prompts as a step has, each of `prompt_tokens` characters = tokens."""
    texts = (f"{number}=".rjust(work.prompt_tokens, "0") for number in range(work.prompts))
    rows = ({"prompt": text, "ground_truth": "1", "data_source": "sums"} for text in texts)
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


@contextmanager
def random_run(
    model: Path, work: Work, settings: Sequence[str], *, folder: Path, algorithm: str = "grpo"
) -> Iterator[Run]:
    """A run of `algorithm` on a model directory, ready for its first step."""
    from rlcli.config.resolver import resolve
    from rlcli.run_dir.find_run import open_run_dir
    from rlcli.trainer.build import build_run
    from rlcli.trainer.run_plan import make_plan

    given = [
        f"model.path={model}", f"data.train=['{write_prompts(work, folder / 'prompts.jsonl')}']",
        "data.val=[]", "reward.fn=exact", "algorithm.kl_loss=false", f"rollout.n={work.n}",
        f"data.max_prompt_tokens={work.prompt_tokens}",
        f"data.max_response_tokens={work.response_tokens}",
        f"train.prompts_per_step={work.prompts}", f"train.mini_batch_prompts={work.prompts}",
        "train.epochs=1000", f"run.output_dir={folder / 'run'}", *settings,
    ]  # fmt: skip
    resolved = resolve(flags={}, overrides=given, files=[], env={}, algo=algorithm, cwd=folder)
    plan = make_plan(resolved)
    run_dir, resume = open_run_dir(plan.resolved, folder)
    run_dir.hold(resumes=False)
    try:
        run = build_run(plan, run_dir, resume, quiet=True)
        try:
            yield run
        finally:
            run.scorer.close()
            run.monitor.console.close()
    finally:
        run_dir.release()


@contextmanager
def forced_lengths(lengths: Sequence[int]) -> Iterator[None]:
    """Row i of every call to the native sampler ends after exactly lengths[i] tokens."""
    import torch

    from rlcli.rollout import native

    plain: Callable[..., tuple[Tensor, Tensor]] = native._Call._choose
    wanted = torch.tensor(lengths)

    def choose(self: _Call, logits: Tensor, rows: Tensor, t: int) -> tuple[Tensor, Tensor]:
        nonlocal wanted
        wanted = wanted.to(rows.device)
        tokens, logprobs = plain(self, logits, rows, t)
        tokens = torch.where(tokens == EOS, OTHER, tokens)
        ends = wanted[self.offset + rows] == t + 1
        return torch.where(ends, EOS, tokens), logprobs

    native._Call._choose = choose
    try:
        yield
    finally:
        native._Call._choose = plain


def one_step(run: Run, work: Work, *, step: int, clock: Callable[[], float]) -> Phases:
    """Sample, estimate and update as the loop does, with random rewards."""
    from rlcli.rollout.base import SamplingParams
    from rlcli.rollout.collate import ScoredRollouts, collate
    from rlcli.types import Reward

    draw = random.Random(step)
    prompts = run.prompts.next(work.prompts)
    params = SamplingParams(n=work.n, max_tokens=work.response_tokens)
    times = [clock()]
    with forced_lengths(work.lengths()):
        rollouts = run.sampler.generate(prompts, params, seed=step)
    times.append(clock())
    rewards = [Reward(value=draw.random()) for _ in rollouts]
    batch = collate(
        ScoredRollouts(rollouts=rollouts, rewards=rewards, greedy={}), needs=run.algorithm.needs
    )
    annotated = run.engine.annotate(batch, run.algorithm)
    advantages = run.algorithm.advantages(annotated, all_reduce=run.engine.all_reduce)
    times.append(clock())
    run.engine.update(annotated, advantages, run.algorithm, step=step)
    times.append(clock())
    run.sampler.load_weights(run.engine.weights(), version=step + 1)
    times.append(clock())
    took = [later - earlier for earlier, later in pairwise(times)]
    return Phases(sample=took[0], annotate=took[1], update=took[2], load=took[3])
