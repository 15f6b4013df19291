"""What goes through rank 0 in a step, what that costs it, and how much of the step a rank holds.

python bench/data_plane.py [--sizes 2 4 8] [--prompts 128] [--n 8] [--tokens 256 1024] [--judge]

Real ranks and the loop's own `collect` and `collate`, over gloo. Sampling and scoring are faked:
random tokens, as many as --tokens within a half, English words as text, rewards at once. Bytes are
those that rank 0 gives to and gets from torch.distributed, as if each rank were sent to by itself,
and, with --judge, over the lines to its judge. CPU seconds are rank 0's, all threads, without what
was faked.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

STEPS, LEFT_OUT = 5, 1
WORDS = (
    *("the", "sum", "of", "two", "numbers", "is", "first", "we", "add", "these", "so", "then"),
    *("answer", "because", "each", "step", "value", "gives", "therefore", "equals", "multiply"),
    *("by", "remaining", "total", "apples", "left", "after", "dividing", "between", "people"),
)


def main() -> None:
    """Print a row for each number of ranks and length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        measure(args)
        return
    print(
        "ranks | tokens | bytes a token | allowed | CPU s per million tokens | share held x ranks"
    )
    for tokens in args.tokens:
        for size in args.sizes:
            print(f"{size} | {tokens} | {run_ranks(size, tokens, args)}", flush=True)


def run_ranks(size: int, tokens: int, args: argparse.Namespace) -> str:
    """Rank 0's row."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            env |= {"MASTER_PORT": str(probe.getsockname()[1])}
        env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, __file__, "--rank", folder, "--tokens", str(tokens)]
        command += ["--prompts", str(args.prompts), "--n", str(args.n)]
        command += ["--judge"] if args.judge else []
        ranks = [
            subprocess.Popen(
                command,
                env={**os.environ, **env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE if rank == 0 else None,
                text=True,
            )
            for rank in range(size)
        ]
        said = ranks[0].communicate()[0]
        for rank in ranks:
            rank.wait()
    return said.strip()


class Counted:
    """Bytes through this rank, and CPU seconds that count for nothing."""

    def __init__(self, size: int) -> None:
        self.bytes, self.faked_s, self._size = 0, 0.0, size

    def watch(self) -> None:
        """Count from here on."""
        from multiprocessing.connection import Connection

        import torch.distributed as dist

        others = self._size - 1
        # to or from each other rank; what all get from all goes both ways
        times = {"all_gather": 2 * others, "gather": others, "broadcast": others}
        for name, factor in times.items():
            place = 1 if name == "all_gather" else 0
            self._wrap(dist, name, lambda args, _, place=place, f=factor: f * args[place].nbytes)
        self._wrap(Connection, "send_bytes", lambda args, _: len(args[1]))
        self._wrap(Connection, "recv_bytes", lambda _, received: len(received))

    def _wrap(self, owner: Any, name: str, size: Callable[[Any, Any], int]) -> None:
        """Count `size(arguments, result)` bytes at every call of `owner.name`."""
        inner = getattr(owner, name)

        def counted(*args: Any, **more: Any) -> Any:
            result = inner(*args, **more)
            self.bytes += size(args, result)
            return result

        setattr(owner, name, counted)


class Scorer:
    """Rewards at once."""

    def submit(self, rollout: Any, *, before: Any = None) -> Future[Any]:
        """A reward with two parts, as a rule and a judge would give."""
        from rlcli.types import Reward

        value = len(rollout.text) % 10 / 10
        future: Future[Any] = Future()
        future.set_result(Reward(value=value, parts={"rule_score": value, "judge": value}))
        return future

    def canaries(self, step: int, prompts: Sequence[Any]) -> list[Any]:
        """None."""
        return []

    def normalize(self, rewards: Sequence[Any], *, update_stats: bool) -> list[Any]:
        """As they are."""
        return [*rewards]

    def metrics(self) -> Mapping[str, float]:
        """None."""
        return {}

    def can_recover(self, unscored: Any) -> bool:
        """No."""
        return False

    def trouble(self) -> None:
        """None."""


class Sampler:
    """Rollouts of random tokens, made before the step begins."""

    def __init__(self, tokens: int) -> None:
        draw = random.Random(0)
        lengths = [draw.randrange(tokens // 2, tokens + tokens // 2) for _ in range(64)]
        self.texts = [" ".join(draw.choices(WORDS, k=length * 4 // 5)) for length in lengths]
        self.ids = [tuple(draw.randrange(150_000) for _ in range(k)) for k in lengths]
        self.logprobs = [tuple(-draw.random() for _ in range(k)) for k in lengths]
        self.draw, self.count = random.Random(os.environ["RANK"]), Counted(1)

    def generate(
        self, prompts: Sequence[Any], params: Any, *, seed: int, places: Any, on_finish: Any
    ) -> list[Any]:
        """See rlcli.rollout.base.Sampler."""
        from rlcli.types import Rollout

        begun, out = time.process_time(), []
        for prompt in prompts:
            for _ in range(params.n):
                i = self.draw.randrange(64)
                rollout = Rollout(
                    prompt=prompt,
                    # no two texts alike: what is sent is not to be found twice
                    text=f"{self.draw.random()} {self.texts[i]}",
                    token_ids=self.ids[i],
                    logprobs=self.logprobs[i],
                    finish_reason="stop",
                    policy_version=0,
                )
                on_finish(len(out), rollout)
                out.append(rollout)
        self.count.faked_s += time.process_time() - begun
        return out


def measure(args: argparse.Namespace) -> None:
    """One rank: some steps, and on rank 0 what they came to."""
    import torch

    from rlcli.config.resolved import with_values
    from rlcli.config.schema import Config
    from rlcli.distributed.live_ranks import LiveRanks
    from rlcli.distributed.process_group import process_group
    from rlcli.distributed.rank_env import read_rank
    from rlcli.rewards.judge.shared import JudgeServer, RemoteJudge
    from rlcli.rollout.collate import collate
    from rlcli.trainer.rollout_step import collect
    from rlcli.types import Prompt

    torch.set_num_threads(1)
    me, (tokens,) = read_rank(os.environ), args.tokens
    prompts = [
        Prompt(id=f"a.jsonl:{i}", messages=({"role": "user", "content": "x"},), token_ids=(1,) * 99)
        for i in range(args.prompts)
    ]
    config = with_values(
        Config(), {"rollout.n": args.n, "train.mini_batch_prompts": args.prompts // 4}
    )
    with process_group(me, is_cuda=False, progress=print) as meeting:
        ranks = LiveRanks(me, meeting.store, args.rank)
        scorer: Any = Scorer()
        server = None
        if args.judge:
            if ranks.is_first:
                server = JudgeServer(scorer, "127.0.0.1", secrets.token_bytes(32), prompts)
            address = ranks.first(server and server.address)
            if not ranks.is_first:
                scorer = RemoteJudge(address, prompts)
                for name in ("canaries", "settle", "metrics"):
                    setattr(scorer, name, getattr(Scorer(), name))
        sampler, count = Sampler(tokens), Counted(me.world_size)
        sampler.count = count
        count.watch()
        run: Any = SimpleNamespace(
            config=config,
            sampler=sampler,
            scorer=scorer,
            algorithm=SimpleNamespace(needs=frozenset({"group"})),
            monitor=SimpleNamespace(note=print, stop_requested=False),
            seed=lambda *purpose: 0,
            ranks=ranks,
        )
        seconds, sent, held = [], [], 0
        gc.collect()
        gc.freeze()  # as the loop does
        for step in range(STEPS):
            before, cpu_s, faked_s = count.bytes, time.process_time(), count.faked_s
            batch = collate(collect(run, prompts, {}, step=step), needs=frozenset({"group"}))
            seconds.append(time.process_time() - cpu_s - (count.faked_s - faked_s))
            sent.append(count.bytes - before)
            held = int(batch.lengths_B.sum())
        everyones = ranks.gather(held)
        total = sum(everyones)
        if ranks.is_first:
            allowed = 6 + 200 * args.prompts * args.n / total
            cpu_s = statistics.median(seconds[LEFT_OUT:]) * 1e6 / total
            bytes_each = statistics.median(sent[LEFT_OUT:]) / total
            most = max(everyones) / total * me.world_size
            print(f"{bytes_each:.2f} | {allowed:.2f} | {cpu_s:.3f} | {most:.2f}")
        ranks.gather(None)
        if args.judge and not ranks.is_first:
            scorer.close()
        ranks.gather(None)
        if server is not None:
            server.close()
        ranks.close()


if __name__ == "__main__":
    main()
