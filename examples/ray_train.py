"""Train with rlcli on the workers of a Ray cluster.

python examples/ray_train.py --workers 2 --gpu -- --preset quickstart --output_dir /shared/run

Everything after -- goes to `rlcli train`, on every worker. --output_dir must be a folder that the
worker of rank 0 keeps; with --max-failures Ray starts the workers again, and they resume from the
last checkpoint there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def train_worker(config: Mapping[str, Any]) -> None:
    """One rank: Ray has set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."""
    command = [sys.executable, "-m", "rlcli.cli.main", "train", *config["words"]]
    # a process of its own: a worker's loop runs in a thread, which cannot handle signals
    ended = subprocess.run(command, cwd=config["folder"], check=False)
    if ended.returncode:
        raise RuntimeError(f"rlcli ended with exit code {ended.returncode}")


def main() -> None:
    """Start the workers and wait for the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--folder", default=".", help="the workers' working directory")
    parser.add_argument("--max-failures", type=int, default=0)
    parser.add_argument("words", nargs="*", help="for `rlcli train`")
    options = parser.parse_args()
    words = [*options.words]
    if options.max_failures and "--resume" not in words:
        words += ["--resume", "auto"]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"words": words, "folder": options.folder},
        torch_config=TorchConfig(backend="nccl" if options.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=options.max_failures)),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
