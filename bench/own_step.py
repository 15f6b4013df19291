"""rlcli's side of vs_trl.py: a real run on the fixed work; prints its report as one JSON line.

python bench/own_step.py MODEL_FOLDER [--algorithm grpo --shortest 8 ...]

Everything is what `train.sh` does, metrics and rollouts written to disk included, but for the
sampler's choice of tokens: it ends rows where the work says so. The log-probs that it records are
those of the plain logits, so that the update is on-policy to rounding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fixed_work import LEARNING_RATE, Watch, Work, force_ends

from rlcli.config.resolver import resolve
from rlcli.rollout import native
from rlcli.run_dir.find_run import open_run_dir
from rlcli.trainer.build import build_run
from rlcli.trainer.loop import train
from rlcli.trainer.run import Run
from rlcli.trainer.run_plan import make_plan

ROOT = Path(__file__).resolve().parent.parent
KL_COEF = {
    "grpo": ("algorithm.kl_loss", "algorithm.kl_loss_coef"),
    "rloo": ("algorithm.kl_in_reward", "algorithm.kl_coef"),
    "ppo": ("algorithm.kl_in_reward", "algorithm.kl_coef"),
}


def settings(work: Work, model: Path, folder: Path) -> list[str]:
    """The work in rlcli's settings: one update per step, everything else at its default."""
    data = folder / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, work.sums())))
    is_on, coefficient = KL_COEF[work.algorithm]
    words = [
        f"algorithm.name={work.algorithm}", f"{is_on}={str(work.kl > 0).lower()}",
        f"model.path={model}", f"model.dtype={work.dtype}",
        f"data.train=[{data}]", "data.val=[]", "data.shuffle=false",
        f"data.max_prompt_tokens={work.prompt_chars}",
        f"data.max_response_tokens={work.longest}",
        f"rollout.n={work.generations}", f"train.lr={LEARNING_RATE}",
        f"train.prompts_per_step={work.prompts}", f"train.mini_batch_prompts={work.prompts}",
        f"train.max_steps={work.left_out + work.steps}",
        f"reward.fn={ROOT / 'bench' / 'fixed_work.py'}:compute_score",
        f"run.output_dir={folder / 'run'}", "run.save_every=1000000",
    ]  # fmt: skip
    if work.kl:
        words.append(f"{coefficient}={work.kl}")
    if work.lora_rank:
        words += [f"lora.rank={work.lora_rank}", f"lora.alpha={2 * work.lora_rank}"]
    if work.algorithm == "ppo":
        words.append(f"critic.lr={LEARNING_RATE}")
    if work.micro_rows:
        words += ["train.dynamic_batch=false", f"train.micro_batch_size={work.micro_rows}"]
    return words


def force_lengths(run: Run, work: Work, watch: Watch) -> None:
    """Have the sampler end its rows where the work says so, and count their tokens."""
    call_class: Any = native._Call
    plain_choose, plain_generate = call_class._choose, run.sampler.generate
    step = -1
    lengths = torch.zeros(0)

    def choose(call: Any, logits_RV: Any, rows_R: Any, t: int) -> Any:
        ends_R = lengths[call.offset + rows_R] == t + 1
        tokens_R, _ = plain_choose(call, force_ends(logits_RV, ends_R), rows_R, t)
        logprobs_RV = logits_RV.float().log_softmax(-1)
        return tokens_R, logprobs_RV.gather(1, tokens_R[:, None])[:, 0]

    def generate(*args: Any, **kwargs: Any) -> Any:
        nonlocal step, lengths
        step += 1
        lengths = torch.tensor(work.lengths(step))
        rollouts = plain_generate(*args, **kwargs)
        found = [len(rollout.token_ids) for rollout in rollouts]
        assert found == lengths.tolist(), "rollouts are not as long as they were meant to be"
        prompt_tokens = sum(len(rollout.prompt.token_ids) for rollout in rollouts)
        watch.count(response_tokens=sum(found), prompt_tokens=prompt_tokens)
        return rollouts

    call_class._choose = choose
    run.sampler.generate = generate


def watch_run(run: Run, watch: Watch) -> None:
    """Time the steps of `run` and their phases."""
    watch.time(run.sampler, "generate", "sampling")
    watch.time(run.engine, "annotate", "reference and values")
    watch.time(run.engine, "update", "update")
    monitor: Any = run.monitor
    plain_step = monitor.step

    @contextmanager
    def step(*args: Any) -> Iterator[Any]:
        watch.begin()
        with plain_step(*args) as record:
            yield record
        watch.end()

    monitor.step = step


def main() -> None:
    """Parse, run, print."""
    work, model = Work.read((__doc__ or "").splitlines()[0])
    watch = Watch()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = settings(work, model.resolve(), folder)
        resolved = resolve(overrides=words, flags={}, files=[], env={}, cwd=folder)
        plan = make_plan(resolved)
        run_dir, resume = open_run_dir(plan.resolved, folder)
        run_dir.hold(resumes=False)
        run = build_run(plan, run_dir, resume, quiet=True)
        try:
            force_lengths(run, work, watch)
            watch_run(run, watch)
            train(run)
        finally:
            run.scorer.close()
            run.monitor.console.close()
            run_dir.release()
    print(watch.report.line(work.left_out))


if __name__ == "__main__":
    main()
