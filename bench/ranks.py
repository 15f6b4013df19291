"""What several processes gain and send: seconds per step, and bytes given to collectives.

python bench/ranks.py [--engines torch 1 2 3] [--sizes 1 2] [--steps 8] [--micro-rows 16] [--out F]

GRPO on the work of fixed_work.py: a 4.8M Qwen2, 16 prompts x 8 answers of 8 to 64
tokens, one update per step, the same lengths in every step. Every process has a core to itself
and one thread. Seconds are CPU seconds of the rank that has most to do in a part of the step,
medians of --steps after two left out: what a step takes on idle cores. "Wall" is the fastest step.
"1" to "3" are DeepSpeed's ZeRO stages; 3 gathers and releases as it does with a large model.
Bytes are counted in the processes themselves, where torch.distributed is called; "on the wire" is
what the loopback device sent meanwhile, so nothing else may use it:
`unshare -n sh -c "ip link set lo up; exec python bench/ranks.py"` gives it to the script.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from collectives import SENT, Count, watch_process
from fixed_work import Work, force_ends, save_model

LEFT_OUT = 2
STEP = ("sampling", "passes", "update", "weights")
MIB = 2**20
WHOLE = {
    ("torch", "update"): lambda m: 2,
    ("1", "update"): lambda m: 3,
    ("1", "checkpoint"): lambda m: 6,
    ("2", "update"): lambda m: 2 * m + 1,
    ("2", "checkpoint"): lambda m: 6,
    ("3", "update"): lambda m: 3 * m,
    ("3", "weights"): lambda m: 1,
    ("3", "checkpoint"): lambda m: 3,
    ("3", "model"): lambda m: 1,
}
"""How often all weights' bytes go past a rank, by engine and phase, with m micro-batches: an
all-reduce is 2, a gather or a reduce-scatter 1. Moments count as weights. In bfloat16 DeepSpeed
sends 2 bytes a weight; checkpoints, and all of the torch engine's, are float32."""


def force_lengths(work: Work) -> None:
    """Have every row of this process end where the work says so, whichever rank it is on."""
    import torch

    from rlcli.rollout import native

    call_class: Any = native._Call
    sampler_class: Any = native.NativeSampler
    plain_choose, plain_generate = call_class._choose, sampler_class.generate
    whole, lengths = work.lengths(0), torch.zeros(0)

    def choose(call: Any, logits_RV: Any, rows_R: Any, t: int) -> Any:
        ends_R = lengths[call.offset + rows_R] == t + 1
        tokens_R, _ = plain_choose(call, force_ends(logits_RV, ends_R), rows_R, t)
        return tokens_R, logits_RV.float().log_softmax(-1).gather(1, tokens_R[:, None])[:, 0]

    def generate(
        sampler: Any, prompts: Any, params: Any, *, prompt_indices: Any = None, **more: Any
    ) -> Any:
        nonlocal lengths
        places = range(len(prompts)) if prompt_indices is None else prompt_indices
        lengths = torch.tensor(
            [whole[place * params.n + i] for place in places for i in range(params.n)]
        )
        return plain_generate(sampler, prompts, params, prompt_indices=places, **more)

    call_class._choose, sampler_class.generate = choose, generate


def shard_as_if_large() -> None:
    """Have stage 3 do what it does from 1e9 parameters on: small matrices are shared out too, and
    what a forward pass has gathered is gathered again for the backward pass.
    """
    from rlcli.engines import deepspeed_engine

    plain = deepspeed_engine.settings_of

    def settings_of(*args: Any, **more: Any) -> dict[str, Any]:
        settings = plain(*args, **more)
        if settings["zero_optimization"]["stage"] == 3:
            names = ("param_persistence_threshold", "max_reuse_distance", "max_live_parameters")
            settings["zero_optimization"] |= {f"stage3_{name}": 0 for name in names}
        return settings

    deepspeed_engine.settings_of = settings_of


def one_rank(work: Work, engine: str, folder: Path) -> None:
    """Take this process's part in a run, and leave what was counted beside it."""
    from own_step import settings

    from rlcli.config.resolver import resolve
    from rlcli.distributed.rank_env import read_rank
    from rlcli.trainer.run_plan import make_plan
    from rlcli.trainer.session import run_rank, run_session

    ranks = read_rank(os.environ)
    words = settings(work, folder / "model", folder)
    words += [
        "train.device=cpu",
        "train.engine=torch" if engine == "torch" else "train.engine=deepspeed",
    ]
    words += [] if engine == "torch" else [f"train.zero_stage={engine}"]
    resolved = resolve(overrides=words, flags={}, files=[], env={}, cwd=folder)
    plan = make_plan(resolved)
    force_lengths(work)
    shard_as_if_large()
    count = Count()
    watch_process(count)
    if ranks is None:
        run_session(plan, folder, [], quiet=True)
    else:
        run_rank(ranks, resolved, lambda: (plan, []), folder, quiet=True)
    told: dict[str, Any] = {"seconds": count.seconds, "cpu_s": count.cpu_s, "given": count.given}
    told["wire"] = count.wire
    told["weights"] = (folder / "model" / "model.safetensors").stat().st_size
    (folder / f"count_{ranks.rank if ranks else 0}.json").write_text(json.dumps(told))


def run_ranks(work: Work, engine: str, size: int) -> list[dict[str, Any]]:
    """What each of `size` processes counted."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        folder = Path(name)
        (folder / "run").mkdir()
        save_model(folder / "model")
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, __file__, "--rank", engine, "--folder", name]
        command += [f"--steps={work.steps}", f"--micro-rows={work.micro_rows}"]
        command += [f"--answers={work.generations}", f"--dtype={work.dtype}"]
        cores = sorted(os.sched_getaffinity(0))
        processes = []
        for rank in range(size):
            env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LOCAL_RANK": "0"}
            if size > 1:
                env |= place_of(rank, size, port)
            core = str(cores[rank % len(cores)])
            with (folder / f"{rank}.log").open("w") as log:
                pinned = ["taskset", "-c", core, *command]
                processes.append(subprocess.Popen(pinned, env=env, stdout=log, stderr=log))
        if not all_well(processes):
            logs = [(folder / f"{rank}.log").read_text()[-3000:] for rank in range(size)]
            raise SystemExit("\n".join([" ".join(command), *logs]))
        return [json.loads((folder / f"count_{rank}.json").read_text()) for rank in range(size)]


def all_well(processes: list[subprocess.Popen[bytes]]) -> bool:
    """Whether all end with 0; once one has not, the others are killed."""
    while (codes := [process.poll() for process in processes]) and not any(codes):
        if None not in codes:
            return True
        time.sleep(0.1)
    for process in processes:
        process.kill()
    return False


def place_of(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables that a launcher sets for a rank."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def time_row(told: list[dict[str, Any]], work: Work) -> list[float]:
    """Seconds of sampling, update and a step, response tokens per second, and wall seconds."""
    steps = range(LEFT_OUT, len(told[0]["seconds"]))

    def busiest(*phases: str) -> float:
        """CPU seconds of the rank that has most to do: the others wait for it."""
        sums = [sum(max(_of(each["cpu_s"][i], p) for each in told) for p in phases) for i in steps]
        return statistics.median(sums)

    sampling, update = busiest("sampling"), busiest("passes", "update")
    whole = sampling + update + busiest("weights")
    wall = min(sum(_of(told[0]["seconds"][i], phase) for phase in STEP) for i in steps)
    return [sampling, update, whole, sum(work.lengths(0)) / whole, wall]


def _of(values: dict[str, float], phase: str) -> float:
    return values.get(phase, 0.0)


def bytes_by_operation(told: list[dict[str, Any]], phase: str, step: int) -> dict[str, float]:
    """MiB that the mean rank gives to each operation in a phase of a step."""
    found: dict[str, float] = {}
    for each in told:
        for name, size in each["given"][step].items():
            where, _, operation = name.partition(" ")
            if where == phase and operation:
                found[operation] = found.get(operation, 0.0) + size / MIB / len(told)
    return found


def bytes_lines(engine: str, told: list[dict[str, Any]], *, half: bool) -> list[str]:
    """A line per phase of the last step; what ends the run lies behind it."""
    size, lines = len(told), []
    num_micro = told[0]["given"][-1]["micro-batches"]
    for phase in ("sampling", "passes", "update", "weights", "checkpoint", "model"):
        given = bytes_by_operation(told, phase, -1)
        sent = sum(SENT[name](size) * mib for name, mib in given.items())
        wire = told[0]["wire"][-1].get(phase, 0) / MIB / size
        times = WHOLE[engine, phase](num_micro) if (engine, phase) in WHOLE else 0
        width = 0.5 if half and engine != "torch" and phase != "checkpoint" else 1.0
        expected = times * width * told[0]["weights"] / MIB * (size - 1) / size
        each = ", ".join(f"{name} {mib:.2f}" for name, mib in given.items() if mib >= 0.005)
        if each:
            micro = num_micro if phase == "update" else ""
            lines.append(
                f"| {_name(engine)} | {size} | {phase} | {micro} | {each} | {sent:.2f} "
                f"| {expected:.2f} | {wire:.2f} |"
            )
    return lines


def _name(engine: str) -> str:
    return engine if engine == "torch" else f"ZeRO {engine}"


def tables(engines: list[str], sizes: list[int], work: Work) -> str:
    """Both tables."""
    times = ["| engine | processes | sampling s | update s | step s | tokens/s | ratio | wall s |"]
    times.append("|---" * 8 + "|")
    sums = [
        "| engine | processes | phase | micro-batches | MiB a rank gives | sends, in rings "
        "| by arithmetic | on the wire |",
        "|---" * 8 + "|",
    ]
    for engine in engines:
        alone = 0.0
        for size in sizes:
            told = run_ranks(work, engine, size)
            sampling, update, step, rate, wall = time_row(told, work)
            alone = alone or rate
            times.append(
                f"| {_name(engine)} | {size} | {sampling:.2f} | {update:.2f} | {step:.2f} "
                f"| {rate:,.0f} | {rate / alone:.2f} | {wall:.2f} |"
            )
            if size > 1:
                sums += bytes_lines(engine, told, half=work.dtype == "bfloat16")
            print(times[-1], file=sys.stderr, flush=True)
    return "\n".join([*times, "", *sums])


def main() -> None:
    """Print the tables; with --rank, be one of the processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", nargs="*", default=["torch", "1", "2", "3"])
    parser.add_argument("--sizes", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--micro-rows", type=int, default=16)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = Work(
        shortest=8,
        generations=args.answers,
        dtype=args.dtype,
        micro_rows=args.micro_rows,
        steps=args.steps,
        left_out=LEFT_OUT,
    )
    if args.rank:
        one_rank(work, args.rank, args.folder)
        return
    text = tables(args.engines, args.sizes, work)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
