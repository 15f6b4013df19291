"""Peak memory of a rank of the fsdp engine while it loads, saves a checkpoint and reads it.

python bench/shares.py [--ranks 4] [--hidden 1024] [--layers 12] [--out F]

A random Llama in float32, by default of 200M weights, with a reference. Memory is a process's
private dirty pages (/proc/PID/smaps_rollup), sampled every 50 ms, above those of the same process
before it loads anything. Kept are the shards of weights, two moments and reference. Exits 1 if a
peak is above twice what a rank keeps plus the largest tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MIB = 2**20
VOCABULARY = 32_000


def private_bytes() -> int:
    """Private dirty pages of this process: not those of files that are mapped to be read."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


@contextmanager
def peak_of(name: str, found: dict[str, int], base: int) -> Iterator[None]:
    """Note the highest number of private bytes inside, above `base`."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            found[name] = max(found.get(name, 0), private_bytes() - base)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def save_model(folder: Path, hidden: int, layers: int) -> None:
    """A random Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=11 * hidden // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def run_rank(model: Path, out: Path) -> dict[str, Any]:
    """Load, make moments, save and load again; the peaks of one rank."""
    import torch
    import torch.distributed as dist

    from rlcli.config.resolved import with_values
    from rlcli.config.schema import Config
    from rlcli.distributed.collectives import Ranks
    from rlcli.engines.fsdp_engine import FsdpEngine
    from rlcli.engines.load_fsdp import load_policy, load_reference
    from rlcli.engines.sharded_model import local_part

    dist.init_process_group("gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    config = with_values(Config(), {"train.engine": "fsdp", "rollout.engine": "vllm"})
    place = config, model, torch.device("cpu"), torch.float32
    found: dict[str, int] = {}
    ranks.gather(None)
    base = private_bytes()
    with peak_of("load", found, base):
        policy, _ = load_policy(*place)
        reference = load_reference(*place)
    more: dict[str, Any] = {"reference": reference, "ranks": ranks, "sampler_is_exact": False}
    engine = FsdpEngine(config, policy, total_steps=1, pad_token_id=0, **more)
    found["loaded"] = private_bytes() - base
    engine.policy_updater.set_zero_grad()
    engine.policy_updater.step(1.0)
    engine.policy_updater.zero_grad()
    found["trained"] = private_bytes() - base
    with peak_of("save", found, base):
        engine.state().copied().save(out)
    ranks.gather(None)
    with peak_of("read", found, base):
        engine.load_state(out)
    tensors = [*policy.model.parameters(), *reference.model.parameters()]
    weights = sum(local_part(tensor).nbytes for tensor in tensors)
    found["kept"] = weights + 2 * sum(local_part(t).nbytes for t in policy.model.parameters())
    found["largest"] = max(tensor.nbytes for tensor in tensors)
    return found


def main() -> None:
    """Start the ranks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rank", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        print(json.dumps(run_rank(*args.rank)))
        return
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name), args)
    worst = {key: max(row[key] for row in rows) for key in rows[0]}
    limit = 2 * worst["kept"] + worst["largest"]
    lines = [f"| {key} | {value / MIB:.0f} |" for key, value in {**worst, "limit": limit}.items()]
    text = "\n".join(["| of the rank with most | MiB |", "|---|---|", *lines])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    if max(worst["load"], worst["save"], worst["read"]) > limit:
        sys.exit(1)


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, int]]:
    """What every rank found."""
    save_model(folder / "model", args.hidden, args.layers)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(args.ranks)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29_000 + os.getpid() % 1000)}
    command = [sys.executable, __file__, "--rank", str(folder / "model"), str(folder / "state")]
    running = [
        subprocess.Popen(command, env=env | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(args.ranks)
    ]
    begun = time.monotonic()
    outputs = [process.communicate()[0] for process in running]
    print(f"{args.ranks} ranks: {time.monotonic() - begun:.0f} s")
    return [json.loads(output.strip().splitlines()[-1]) for output in outputs]


if __name__ == "__main__":
    main()
