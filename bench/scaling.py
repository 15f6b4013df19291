"""How the cost of a step grows with rows, with response tokens and with the vocabulary.

python bench/scaling.py [--only rows tokens vocabulary] [--steps 3] [--out FILE]

GRPO in float32 on a 0.8M-parameter Qwen2 with random weights, CPU, one thread, responses of one
length. Every row is a process of its own: one step to warm up, then the medians of --steps.
Seconds are CPU seconds. "Peak" is the growth of resident memory over the model as loaded, less
gradients and Adam moments. "Outside attention" is the same step with the attention function
replaced by one that returns the queries. The last line of a table divides the cost per unit at
the largest size by that at the smallest: 1 is linear, less is better than that.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from random_run import Shape, Work, one_step, random_run, write_model

SMALL = Shape(hidden=128, layers=4, heads=4, kv_heads=2, inner=384, vocabulary=256)
WORK = Work(prompts=16, n=8, prompt_tokens=32, response_tokens=64)
PROMPTS = (16, 32, 64, 128)
RESPONSE_TOKENS = (64, 128, 256, 512, 1024)
VOCABULARIES = (128, 1024, 8192, 65536)
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of a table."""

    shape: Shape
    work: Work
    with_attention: bool = True

    @property
    def rows(self) -> int:
        """Responses of a step."""
        return self.work.prompts * self.work.n

    @property
    def tokens(self) -> int:
        """Response tokens of a step."""
        return self.rows * self.work.response_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU seconds of sampling and updating, and MiB of memory at the peak."""

    sample: float
    update: float
    peak_mib: float


def measure(case: Case, *, steps: int) -> Cost:
    """The cost of a case, in this process."""
    import psutil
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(case.shape, folder / "model")
        with random_run(model, case.work, ["model.dtype=float32"], folder=folder) as run:
            before = psutil.Process().memory_info().rss
            parameters = sum(tensor.numel() for _, tensor in run.engine.weights())
            calls = [0]
            if not case.with_attention:
                leave_attention_out(calls)
            phases = []
            for step in range(steps + 1):
                torch.manual_seed(step)
                phases.append(one_step(run, case.work, step=step, clock=time.process_time))
            assert case.with_attention or calls[0], "the attention function was not replaced"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(
        sample=statistics.median(phase.sample for phase in phases[1:]),
        update=statistics.median(phase.annotate + phase.update for phase in phases[1:]),
        peak_mib=(peak - before - 3 * 4 * parameters) / MIB,
    )


def leave_attention_out(calls: list[int]) -> None:
    """Have the packed attention function return its queries; calls[0] counts how often."""
    from transformers import AttentionInterface

    from rlcli.models.packed_attention import ATTENTION

    def queries(module: Any, query: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        calls[0] += 1
        return query.transpose(1, 2), None

    AttentionInterface.register(ATTENTION, queries)


def in_child(case: Case, *, steps: int) -> Cost:
    """The cost of a case, in a process of its own: peak memory never falls."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited {done.returncode}:\n{done.stderr}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def read_case(text: str) -> Case:
    """What `in_child` wrote."""
    values = json.loads(text)
    shape, work = Shape(**values["shape"]), Work(**values["work"])
    return Case(shape=shape, work=work, with_attention=values["with_attention"])


def ratio(values: Sequence[float]) -> str:
    """The last over the first."""
    return f"{values[-1] / values[0]:.2f}"


def rows_table(*, steps: int) -> str:
    """Cost per response as prompts grow."""
    cases = [Case(shape=SMALL, work=replace(WORK, prompts=prompts)) for prompts in PROMPTS]
    costs = [in_child(case, steps=steps) for case in cases]
    sample = [1e3 * cost.sample / case.rows for case, cost in zip(cases, costs, strict=True)]
    update = [1e3 * cost.update / case.rows for case, cost in zip(cases, costs, strict=True)]
    lines = ["| rows | sampling s | update s | sampling ms/row | update ms/row | peak MiB |"]
    lines.append("|---" * 6 + "|")
    lines += [
        f"| {case.rows:,} | {cost.sample:.2f} | {cost.update:.2f} | {s:.2f} | {u:.2f} "
        f"| {cost.peak_mib:,.0f} |"
        for case, cost, s, u in zip(cases, costs, sample, update, strict=True)
    ]
    return "\n".join([*lines, f"| largest / smallest | | | {ratio(sample)} | {ratio(update)} | |"])


def tokens_table(*, steps: int) -> str:
    """Cost per response token as responses grow, with and without attention."""
    work = replace(WORK, prompts=4)
    cases = [
        Case(shape=SMALL, work=replace(work, response_tokens=length)) for length in RESPONSE_TOKENS
    ]
    lines = [
        "| response tokens | sampling s | update s | sampling us/token | update us/token "
        "| outside attention: sampling us/token | update us/token | peak MiB |",
        "|---" * 8 + "|",
    ]
    columns: list[list[float]] = []
    for case in cases:
        whole = in_child(case, steps=steps)
        rest = in_child(replace(case, with_attention=False), steps=steps)
        seconds = (whole.sample, whole.update, rest.sample, rest.update)
        columns.append([1e6 * value / case.tokens for value in seconds])
        each = " | ".join(f"{value:.0f}" for value in columns[-1])
        lines.append(
            f"| {case.work.response_tokens} | {whole.sample:.2f} | {whole.update:.2f} | {each} "
            f"| {whole.peak_mib:,.0f} |"
        )
    ratios = " | ".join(ratio(values) for values in zip(*columns, strict=True))
    return "\n".join([*lines, f"| largest / smallest | | | {ratios} | |"])


def vocabulary_table(*, steps: int) -> str:
    """Cost and memory as the vocabulary grows; a matrix is one float32 per token and word."""
    work = replace(WORK, prompts=8)
    lines = ["| vocabulary | sampling s | update s | tokens x vocabulary MiB | peak MiB |"]
    lines.append("|---" * 5 + "|")
    for size in VOCABULARIES:
        case = Case(shape=replace(SMALL, vocabulary=size), work=work)
        cost = in_child(case, steps=steps)
        matrix = 4 * case.tokens * size / MIB
        lines.append(
            f"| {size:,} | {cost.sample:.2f} | {cost.update:.2f} | {matrix:,.0f} "
            f"| {cost.peak_mib:,.0f} |"
        )
    return "\n".join(lines)


TABLES = {"rows": rows_table, "tokens": tokens_table, "vocabulary": vocabulary_table}


def main() -> None:
    """Print the tables; with --case, the cost of one row as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=TABLES, default=list(TABLES))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    parser.add_argument("--case", type=read_case, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if args.case:
        print(json.dumps(asdict(measure(args.case, steps=args.steps))))
        return
    texts = []
    for name in args.only:
        texts.append(TABLES[name](steps=args.steps))
        print(texts[-1] + "\n", flush=True)
    if args.out:
        args.out.write_text("\n\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
