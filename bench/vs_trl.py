"""CPU seconds and peak memory of a step, against TRL on the same work.

python bench/vs_trl.py --trl PYTHON [--trl-ppo PYTHON] [--rows grpo-ragged ...] [--pairs 5]

PYTHON is that of an environment with torch, trl==1.16.0, peft and psutil (for PPO: trl==1.12.0).
The sides take turns, a process each, on one thread. The work is fixed (fixed_work.py), and the
tokens sampled, the tokens of the prompts and the weights that were updated must agree. TRL runs
with the rows per micro-batch that suit it best, tried beforehand; rlcli with its defaults. The
memory rows give both the same. Medians over pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fixed_work import Report, Work, save_model

ROOT = Path(__file__).resolve().parent.parent
DTYPES = ("float32", "bfloat16")
MICRO_ROWS = (32, 64, 128, 512)

RAGGED = Work(shortest=8)
SHORT = Work(prompts=64, shortest=2, longest=6, prompt_chars=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table. dtypes: each side takes the one in which it is faster."""

    title: str
    work: Work
    dtypes: Sequence[str] = ("float32",)
    needs_same_rows: bool = False


ROWS = {
    "grpo-fixed": Row(title="GRPO, 64 tokens", work=Work()),
    "grpo-ragged": Row(title="GRPO, 8-64 tokens", work=RAGGED),
    "grpo-best": Row(title="GRPO, 8-64, own best dtype", work=RAGGED, dtypes=DTYPES),
    "grpo-short": Row(title="GRPO, 2-6 tokens", work=SHORT),
    "grpo-kl": Row(title="GRPO with KL, 8-64", work=replace(RAGGED, kl=0.04)),
    "rloo-kl": Row(title="RLOO with KL, 8-64", work=replace(RAGGED, algorithm="rloo", kl=0.05)),
    "grpo-lora": Row(
        title="GRPO with KL, LoRA r8, 8-64", work=replace(RAGGED, kl=0.04, lora_rank=8)
    ),
    "ppo": Row(title="PPO, 8-64", work=replace(RAGGED, algorithm="ppo", kl=0.05)),
    "ppo-single": Row(
        title="PPO, 8-64, a prompt an answer",
        work=replace(RAGGED, algorithm="ppo", kl=0.05, prompts=128, generations=1),
    ),
    "memory": Row(
        title="memory: GRPO, 64 tokens, 64 rows a micro-batch",
        work=Work(micro_rows=64),
        needs_same_rows=True,
    ),
    "memory-ragged": Row(
        title="memory: GRPO, 8-64, 64 rows a micro-batch",
        work=replace(RAGGED, micro_rows=64),
        needs_same_rows=True,
    ),
}


@dataclass(slots=True, kw_only=True)
class Bench:
    """The two sides, and what was found to suit TRL.

    micro_rows: tried for TRL where they divide a step's rollouts.
    """

    peers: Mapping[str, str]
    model: Path
    micro_rows: Sequence[int]
    tried: dict[Work, tuple[float, int]] = field(default_factory=dict)

    def own(self, work: Work) -> Report:
        """A run of rlcli."""
        return self._run(sys.executable, "own_step.py", work)

    def peer(self, work: Work) -> Report:
        """A run of TRL."""
        return self._run(self.peers[family(work)], "peer_step.py", work)

    def suits_peer(self, work: Work) -> tuple[float, int]:
        """(CPU seconds of a step, rows per micro-batch) of TRL at its fastest.

        Tried without KL term and adapters, which change little of it, once for all such rows.
        """
        plain = replace(work, lora_rank=0, steps=1)
        if family(work) == "grpo":
            plain = replace(plain, algorithm="grpo", kl=0.0)
        if plain not in self.tried:
            sizes = [size for size in self.micro_rows if plain.rollouts % size == 0]
            self.tried[plain] = min(
                (seconds(self.peer(replace(plain, micro_rows=size))), size) for size in sizes
            )
        return self.tried[plain]

    def best_peer(self, row: Row) -> Work:
        """The row's work with the dtype and the rows per micro-batch that make TRL fastest."""
        if row.needs_same_rows:
            return row.work
        if len(row.dtypes) == len(self.micro_rows) == 1:
            return replace(row.work, micro_rows=self.micro_rows[0])
        works = [replace(row.work, dtype=dtype) for dtype in row.dtypes]
        best = min(works, key=self.suits_peer)
        return replace(best, micro_rows=self.suits_peer(best)[1])

    def best_own(self, row: Row) -> Work:
        """The row's work in the dtype that makes rlcli fastest."""
        works = [replace(row.work, dtype=dtype) for dtype in row.dtypes]
        if len(works) == 1:
            return works[0]
        return min(works, key=lambda work: seconds(self.own(replace(work, steps=1))))

    def _run(self, python: str, script: str, work: Work) -> Report:
        command = [python, str(ROOT / "bench" / script), str(self.model), *work.words()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} exited {done.returncode}:\n{done.stderr}")
        report = Report(**json.loads(done.stdout.splitlines()[-1]))
        phases = ", ".join(
            f"{name} {statistics.median(each):.2f}" for name, each in report.phases.items()
        )
        told = f"{script} {work.algorithm} {work.dtype} micro {work.micro_rows or 'own'}"
        print(
            f"{told}: {seconds(report):.2f} s ({phases}), {report.peak_mib:.0f} MiB",
            file=sys.stderr,
            flush=True,
        )
        return report


def family(work: Work) -> str:
    """Which of TRL's environments has the algorithm."""
    return "ppo" if work.algorithm == "ppo" else "grpo"


def seconds(report: Report) -> float:
    """CPU seconds of a step."""
    return statistics.median(report.cpu_s)


def check_same_work(own: Report, peer: Report) -> None:
    """Both sampled as many tokens after as many, and moved as many weights, in every step."""
    assert own.response_tokens == peer.response_tokens, (own.response_tokens, peer.response_tokens)
    assert own.prompt_tokens == peer.prompt_tokens, (own.prompt_tokens, peer.prompt_tokens)
    # a critic's head has one weight more here: a bias
    pairs = zip(own.updated, peer.updated, strict=True)
    assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs), (own.updated, peer.updated)


def line(bench: Bench, row: Row, pairs: int) -> str:
    """The row of the table."""
    peer_work, own_work = bench.best_peer(row), bench.best_own(row)
    runs: list[tuple[Report, Report]] = []
    for _ in range(pairs):
        own, peer = bench.own(own_work), bench.peer(peer_work)
        check_same_work(own, peer)
        runs.append((own, peer))

    def middle(value: Callable[[Report, Report], float]) -> float:
        return statistics.median(value(own, peer) for own, peer in runs)

    work = row.work
    return (
        f"| {row.title} | {work.prompts} x {work.generations} "
        f"| {short(peer_work.dtype)}, {peer_work.micro_rows} | {short(own_work.dtype)} "
        f"| {middle(lambda own, peer: seconds(peer)):.2f} "
        f"| {middle(lambda own, peer: seconds(own)):.2f} "
        f"| {middle(lambda own, peer: seconds(peer) / seconds(own)):.2f} "
        f"| {middle(lambda own, peer: peer.peak_mib):.0f} "
        f"| {middle(lambda own, peer: own.peak_mib):.0f} "
        f"| {middle(lambda own, peer: own.peak_mib / peer.peak_mib):.2f} |"
    )


HEAD = """\
| work | prompts x answers | TRL dtype, rows | rlcli dtype | TRL CPU s | rlcli CPU s | TRL / rlcli \
| TRL MiB | rlcli MiB | rlcli / TRL |
|---|---|---|---|---|---|---|---|---|---|"""


def short(dtype: str) -> str:
    """f32 or bf16."""
    return {"float32": "f32", "bfloat16": "bf16"}[dtype]


def chosen_rows(args: argparse.Namespace) -> Iterator[Row]:
    """The rows asked for, at the sizes asked for."""
    for name in args.rows:
        row = ROWS[name]
        if family(row.work) == "ppo" and not args.trl_ppo:
            continue
        work = replace(row.work, steps=args.steps)
        yield replace(row, work=replace(work, prompts=args.prompts) if args.prompts else work)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trl", required=True, help="Python that has trl 1.16.0")
    parser.add_argument("--trl-ppo", help="Python that has trl 1.12.0; none: no PPO rows")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps that count, after three")
    parser.add_argument(
        "--micro_rows", nargs="+", type=int, default=MICRO_ROWS, help="tried for TRL"
    )
    parser.add_argument("--prompts", type=int, help="prompts per step, in place of the rows' own")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        save_model(Path(name))
        peers = {"grpo": args.trl, "ppo": args.trl_ppo}
        bench = Bench(peers=peers, model=Path(name), micro_rows=args.micro_rows)
        print(HEAD, flush=True)
        for row in chosen_rows(args):
            print(line(bench, row, args.pairs), flush=True)


if __name__ == "__main__":
    main()
