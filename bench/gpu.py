"""A GRPO step at the shapes of Qwen2.5 with random weights: tokens/s, MFU, memory, where time goes.

python bench/gpu.py [--shape 0.5b 1.5b] [--prompts 64] [--n 8] [--settings KEY=VALUE ...]
python bench/gpu.py --device cpu --shape tiny --prompts 4 --prompt-tokens 16 --response-tokens 32

Torch engine and native sampler, built as `rlcli train` builds them; nothing is downloaded. Wall
seconds, one step to warm up, then medians. On the CPU no MFU is printed.

MFU is the update's FLOPs / (its seconds x peak). FLOPs of an update, forward and backward:
  6 x (matrix weights) x (tokens computed: every response, and each group's prompt once)
  + 6 x hidden x vocabulary x (response tokens)
  + 12 x layers x heads x head size x (sum over tokens of how many tokens each attends to)
What is computed twice (checkpointing, the chunked head) counts once. The peak is the card's dense
bfloat16 figure, or --peak-tflops. Memory is the most that torch allocated during sampling and
during the update; on the CPU it is what was resident at their ends.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from random_run import Phases, Shape, Work, one_step, random_run, write_model

if TYPE_CHECKING:
    from rlcli.trainer.run import Run

SHAPES = {
    "tiny": Shape(hidden=64, layers=2, heads=4, kv_heads=2, inner=128, vocabulary=512),
    "0.5b": Shape(hidden=896, layers=24, heads=14, kv_heads=2, inner=4864, vocabulary=151936),
    "1.5b": Shape(hidden=1536, layers=28, heads=12, kv_heads=2, inner=8960, vocabulary=151936),
}
PEAK_TFLOPS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0}
"""Dense bfloat16, by a part of the device's name; the first that fits counts."""
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Medians over steps, and the most memory sampling and updating took."""

    phases: Phases
    sample_gib: float
    update_gib: float


class Clock:
    """Wall seconds once the device has done what it was asked to, and memory peaks."""

    def __init__(self, device: str) -> None:
        import torch

        self.cuda = torch.cuda if device == "cuda" else None
        self.peaks_gib: list[float] = []

    def __call__(self) -> float:
        """Now; notes the peak of memory since the last call."""
        if self.cuda is None:
            import psutil

            self.peaks_gib.append(psutil.Process().memory_info().rss / GIB)
        else:
            self.cuda.synchronize()
            self.peaks_gib.append(self.cuda.max_memory_allocated() / GIB)
            self.cuda.reset_peak_memory_stats()
        return time.perf_counter()


def update_flops(shape: Shape, work: Work) -> float:
    """FLOPs of the forward and backward passes of one update. See the head of this file."""
    lengths, prompt = work.lengths(), work.prompt_tokens
    responses = sum(lengths)
    tokens = responses + work.prompts * prompt
    seen = work.prompts * prompt * (prompt + 1) / 2
    seen += sum(length * prompt + length * (length + 1) / 2 for length in lengths)
    matrices = 6 * shape.matrix_parameters * tokens
    head = 6 * shape.hidden * shape.vocabulary * responses
    return matrices + head + 12 * shape.layers * shape.hidden * seen


def measure(run: Run, work: Work, *, device: str, steps: int) -> Measured:
    """Medians of `steps` steps after one that warms up."""
    clock = Clock(device)
    found = []
    for step in range(steps + 1):
        found.append(one_step(run, work, step=step, clock=clock))
    medians = {
        field.name: statistics.median(getattr(phases, field.name) for phases in found[1:])
        for field in fields(Phases)
    }
    # five calls a step: before and after sampling, and after each of the others
    peaks = [clock.peaks_gib[start : start + 5] for start in range(0, len(clock.peaks_gib), 5)]
    return Measured(
        phases=Phases(**medians),
        sample_gib=max(step[1] for step in peaks),
        update_gib=max(step[3] for step in peaks),
    )


HEAD = """\
| shape | prompts x n, tokens | sampling s | tokens/s | old log-probs s | update s | tokens/s \
| MFU | weights to sampler s | step s | shares | sampling GiB | update GiB |
|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def row(name: str, work: Work, seen: Measured, *, peak_tflops: float | None) -> str:
    """One line of the table."""
    phases, shape = seen.phases, SHAPES[name]
    responses = sum(work.lengths())
    tokens = responses + work.prompts * work.prompt_tokens
    mfu = "-"
    if peak_tflops:
        mfu = f"{update_flops(shape, work) / phases.update / (peak_tflops * 1e12):.1%}"
    parts = (phases.sample, phases.annotate, phases.update, phases.load)
    shares = " / ".join(f"{part / phases.step:.0%}" for part in parts)
    low = "" if work.shortest is None else f"{work.shortest} to "
    size = f"{work.prompts} x {work.n}, {work.prompt_tokens} + {low}{work.response_tokens}"
    return (
        f"| {name} | {size} | {phases.sample:.2f} | {responses / phases.sample:,.0f} "
        f"| {phases.annotate:.2f} | {phases.update:.2f} | {tokens / phases.update:,.0f} | {mfu} "
        f"| {phases.load:.2f} | {phases.step:.2f} | {shares} | {seen.sample_gib:.1f} "
        f"| {seen.update_gib:.1f} |"
    )


def profile(run: Run, work: Work, *, device: str) -> str:
    """The torch profiler's tables of sampling and of an update, costliest operators first."""
    import torch
    from torch.profiler import ProfilerActivity

    on_cuda = device == "cuda"
    key = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    current: Any = None
    tables: list[str] = []
    names = iter(("sampling", "old log-probs", "update", "weights to sampler"))

    def clock() -> float:
        nonlocal current
        if on_cuda:
            torch.cuda.synchronize()
        if current is not None:
            current.stop()
            text = current.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60)
            tables.append(f"{next(names)}\n{text}")
        current = torch.profiler.profile(activities=activities)
        current.start()
        return time.perf_counter()

    one_step(run, work, step=0, clock=clock)
    current.stop()
    return "\n".join(tables)


def peak_of(device: str) -> float | None:
    """The card's TFLOP/s by its name; None for one that is not in the table, and for a CPU."""
    import torch

    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def bench(name: str, args: argparse.Namespace) -> tuple[str, str]:
    """(the row of a shape, its profile if one was asked for)."""
    work = Work(
        prompts=args.prompts,
        n=args.n,
        prompt_tokens=args.prompt_tokens,
        response_tokens=args.response_tokens,
        shortest=args.shortest,
    )
    settings = [f"train.device={args.device}", *args.settings]
    peak_tflops = args.peak_tflops or peak_of(args.device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dtype = "bfloat16" if args.device == "cuda" else "float32"
        model = write_model(SHAPES[name], folder / "model", dtype=dtype)
        with random_run(model, work, settings, folder=folder) as run:
            seen = measure(run, work, device=args.device, steps=args.steps)
            found = profile(run, work, device=args.device) if args.profile else ""
    return row(name, work, seen, peak_tflops=peak_tflops), f"{name}: {found}"


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["0.5b", "1.5b"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    sizes = {"prompts": 64, "n": 8, "prompt-tokens": 256, "response-tokens": 512, "steps": 3}
    for option, default in sizes.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--shortest", type=int, help="responses of this many tokens to the most")
    parser.add_argument("--peak-tflops", type=float, help="what MFU divides by")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="also profile one more step")
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    return parser.parse_args()


def main() -> None:
    """Measure every shape and print."""
    args = read_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    lines, profiles = [HEAD], []
    print(HEAD, flush=True)
    for name in args.shape:
        line, found = bench(name, args)
        print(line, flush=True)
        lines.append(line)
        profiles.append(found)
    if args.profile:
        args.profile.write_text("\n\n".join(profiles) + "\n")
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
