"""Runs that are killed and resumed, forked from one process that has imported everything.

python crash_runs.py MODE MODEL FOLDER [COUNT] prints one JSON object per scenario.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rlcli.engines.export
import rlcli.run_dir.checkpoint
import rlcli.trainer.loop  # imported before the fork: every child starts at once
from rlcli.cli.main import main

UNSTABLE = ("time/", "tokens_per_s", "memory/")
STEPS = 7
BEHIND = (1, 10, 23, 36, 40)
"""Of 12 calls per save and one per removal: between two files, before the first checkpoint has its
name, after the second has, at the first removal, in the fourth save's hashes."""


def write_inputs(folder: Path) -> None:
    rows = [{"prompt": f"{i} + {i + 1} = ", "ground_truth": str(2 * i + 1)} for i in range(10)]
    lines = "\n".join(json.dumps({**row, "data_source": "x"}) for row in rows)
    (folder / "data.jsonl").write_text(lines)
    (folder / "reward.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return (len(solution_str) * 7 % 11) / 11\n"
    )


PPO = ["--algo", "ppo", "algorithm.kl_controller=adaptive"]
KINDS = {
    "protocol": PPO,
    "behind": PPO,
    "random": ["--algo", "grpo", "lora.rank=4", "lora.dropout=0.3", "algorithm.correction=token",
               "algorithm.dynamic_sampling=true", "algorithm.max_resample_rounds=2"],
}  # fmt: skip


def arguments(model: str, folder: Path, run: Path, mode: str, *extra: str) -> list[str]:
    return [
        "rlcli", "train", *KINDS[mode], "--model", model, "--output_dir", str(run),
        "--data", str(folder / "data.jsonl"), "--val_data", str(folder / "data.jsonl"),
        "--reward", f"{folder / 'reward.py'}:compute_score", "--max_steps", str(STEPS),
        "data.max_prompt_tokens=32", "data.max_response_tokens=8", "train.lr=1e-3",
        "critic.lr=1e-3", "train.prompts_per_step=4", "train.mini_batch_prompts=2",
        "run.eval_every=2", *extra,
    ]  # fmt: skip


def start(argv: list[str], prepare: Callable[[], None] | None = None) -> int:
    """Process id of a forked run."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    sys.argv = argv
    code: Any = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    finally:
        os._exit(code if isinstance(code, int) else 0)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(count: int) -> Callable[[], None]:
    """Kills the process at the `count`-th step of the checkpoint protocol."""

    def prepare() -> None:
        left = [count]

        def guarded(name: str) -> None:
            real = getattr(os, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return real(*args, **kwargs)

            setattr(os, name, call)

        for name in ("fsync", "rename", "replace", "truncate"):
            guarded(name)

    return prepare


def die_behind(count: int, metrics: Path) -> Callable[[], None]:
    """Kills the process at the `count`-th step of writing beside training, a step further on."""

    def prepare() -> None:
        left = [count]

        def guarded(place: Any, name: str) -> None:
            real = getattr(place, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                if threading.current_thread() is not threading.main_thread():
                    left[0] -= 1
                    if left[0] < 0:
                        os._exit(9 if grows(metrics) else 8)
                return real(*args, **kwargs)

            setattr(place, name, call)

        for place, name in [
            (os, "fsync"),
            (os, "rename"),
            (shutil, "rmtree"),
            (rlcli.run_dir.checkpoint, "_sha256"),
            (rlcli.engines.export, "save_file"),
        ]:
            guarded(place, name)

    return prepare


def grows(metrics: Path) -> bool:
    """Whether training goes on meanwhile: the next step's metrics come within a minute."""
    size, until = metrics.stat().st_size, time.monotonic() + 60
    while metrics.stat().st_size == size and time.monotonic() < until:
        time.sleep(0.01)
    return metrics.stat().st_size > size


def await_lines(file: Path, count: int, child: int) -> None:
    """Until the file has so many lines, or its writer has ended."""
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if count == 0 or (file.exists() and file.read_bytes().count(b"\n") >= count):
            return
        time.sleep(0.01)


def write_slowly() -> None:
    """Nearly always, a checkpoint is being written."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.03)
        real(descriptor)

    os.fsync = fsync


def fingerprint(run: Path) -> dict[str, Any]:
    """Hashes of the last checkpoint's tensors, and the metrics without what may differ."""
    last = run / "checkpoints" / f"step_{STEPS}"
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(last.glob("*.safetensors"))
    }
    metrics = [
        {k: v for k, v in json.loads(line).items() if not k.startswith(UNSTABLE)}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    status = json.loads((run / "status.json").read_text())
    return {"hashes": hashes, "metrics": metrics, "state": status["state"]}


def scenario(
    model: str, folder: Path, mode: str, name: str, kill: Callable[[list[str]], int]
) -> None:
    """One killed and resumed run, compared with the uninterrupted one."""
    run = folder / f"run-{name}"
    argv = arguments(model, folder, run, mode, "--save_every", "1")
    code = kill(argv)
    exits, tries = [code], 0
    while exits[-1] != 0 and tries < 3:
        exits.append(wait(start([*argv, "--resume", "auto"])))
        tries += 1
    same = fingerprint(run) == fingerprint(folder / "run-whole")
    print(json.dumps({"name": name, "exits": exits, "same": same}), flush=True)
    shutil.rmtree(run)


def main_() -> None:
    mode, model, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    folder.mkdir(parents=True, exist_ok=True)
    write_inputs(folder)
    whole = arguments(model, folder, folder / "run-whole", mode, "--save_every", "1")
    begun = time.monotonic()
    assert wait(start(whole)) == 0
    seconds = time.monotonic() - begun
    if mode == "protocol":
        for at in range(count):
            place = 7 + 5 * at

            def cut(argv: list[str], place: int = place) -> int:
                return wait(start(argv, die_at(place)))

            scenario(model, folder, mode, f"protocol{place}", cut)
    if mode == "behind":
        for place in BEHIND[:count]:
            run = folder / f"run-behind{place}"

            def cut_behind(argv: list[str], place: int = place, run: Path = run) -> int:
                return wait(start(argv, die_behind(place, run / "metrics.jsonl")))

            scenario(model, folder, mode, f"behind{place}", cut_behind)
    if mode == "random":
        draw = random.Random(0)
        for i in range(count):
            steps, delay = draw.randrange(STEPS), draw.uniform(0.0, seconds / STEPS)
            run = folder / f"run-random{i}"

            def kill(
                argv: list[str], steps: int = steps, delay: float = delay, run: Path = run
            ) -> int:
                child = start(argv, write_slowly)
                await_lines(run / "metrics.jsonl", steps, child)
                time.sleep(delay)
                os.killpg(child, signal.SIGKILL)
                return wait(child)

            scenario(model, folder, mode, f"random{i}", kill)


if __name__ == "__main__":
    main_()
