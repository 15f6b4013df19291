"""Plants one-line faults in a copy of the package, one at a time, and runs the tests on each.

python bench/planted_bugs.py [NAME ...] [--fast]

For each fault: the tests of its rooms without those that start processes or train, then, where
these pass, the tests named for it. Prints a table of faults, the test that failed and seconds.
--fast: only the former. NAME: only these faults. The exit code is 1 when a fault is not found,
and 2 when a patch no longer applies or a test fails without it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch  # noqa: F401  all forks share them
import transformers  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "outputs", "shared")
IMPORTED = "ignore::pytest.PytestAssertRewriteWarning"
"""Packages that the forks share are imported before pytest can rewrite them."""
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?\.py\S*)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One line of `file` with `old` replaced by `new`.

    rooms: tests tried first, without processes and training. rest: those tried next, with both.
    """

    file: str
    old: str
    new: str
    rooms: str
    rest: str = ""


FAULTS = {
    "wrong sign in the policy loss": Fault(
        file="algos/token_loss.py",
        old="return -advantages_BT * ratio_BT,",
        new="return advantages_BT * ratio_BT,",
        rooms="algos",
    ),
    "ratio clipped on the wrong side": Fault(
        file="algos/token_loss.py",
        old="clamp(1 - clip_low, 1 + clip_high)",
        new="clamp(1 - clip_high, 1 + clip_low)",
        rooms="algos",
    ),
    "targets shifted by one": Fault(
        file="models/packed_attention.py",
        old="return before[targets.row, targets.column]",
        new="return before[targets.row, (targets.column - 1).clamp(min=0)]",
        rooms="models engines",
    ),
    "std with the wrong degrees of freedom": Fault(
        file="algos/masked_stats.py",
        old="(squares_B / (self.count_B - 1).clamp(min=1))",
        new="(squares_B / self.count_B.clamp(min=1))",
        rooms="algos",
    ),
    "group boundaries off": Fault(
        file="algos/masked_stats.py",
        old="self._grid(values_B, 0.0).sum(dim=1)[self.group_B]",
        new="self._grid(values_B, 0.0).sum(dim=1)[self.group_B.roll(1)]",
        rooms="algos",
    ),
    "GAE without the mask": Fault(
        file="algos/advantages.py",
        old="aligned_values_BT = left_align(values_BT, mask_BT)",
        new="aligned_values_BT = values_BT",
        rooms="algos",
    ),
    "mask ignored in the KL mean": Fault(
        file="algos/algorithm.py",
        old='total = all_reduce((kl(old, ref, "k1") * mask_BT).sum())',
        new='total = all_reduce(kl(old, ref, "k1").sum())',
        rooms="algos",
    ),
    "unscored counted as 0": Fault(
        file="rollout/collate.py",
        old="torch.tensor([float(r.value is not None) for r in rewards])",
        new="torch.tensor([1.0 for r in rewards])",
        rooms="rollout",
    ),
    "an environment's tokens trained on": Fault(
        file="rollout/collate.py",
        old="masks = [r.mask or (1,) * len(r.token_ids) for r in rollouts]",
        new="masks = [(1,) * len(r.token_ids) for r in rollouts]",
        rooms="rollout engines envs",
    ),
    "reference is the policy": Fault(
        file="engines/forward_passes.py",
        old="off, reference = self._fetched(self.reference), self.reference",
        new="off, reference = self._fetched(self.reference), self.policy",
        rooms="engines",
    ),
    "learning rate schedule lost": Fault(
        file="engines/optimizer.py",
        old='group["lr"] = self.lr * factor',
        new='group["lr"] = self.lr',
        rooms="engines",
    ),
    "optimizer state lost on resume": Fault(
        file="engines/optimizer.py",
        old="self.adamw.state[parameter] = moments",
        new="pass",
        rooms="engines",
    ),
    "LoRA not merged on export": Fault(
        file="engines/merge.py",
        old='tensor = tensor.float() + layer.get_delta_weight("default").float()',
        new="tensor = tensor.float()",
        rooms="engines",
    ),
    "shares of the ranks not summed": Fault(
        file="distributed/collectives.py",
        old="waiting.append(dist.all_reduce(parameter.grad, async_op=True))",
        new="pass",
        rooms="distributed",
        rest="distributed/test_ranks.py::test_any_number_of_ranks_gives_the_same",
    ),
    "stale weights after an update": Fault(
        file="rollout/native.py",
        old="own[name].copy_(tensor)",
        new="pass",
        rooms="rollout",
    ),
    "checkpoint not verified": Fault(
        file="run_dir/checkpoint.py",
        old="elif _sha256(path) != expected:",
        new="elif False:",
        rooms="run_dir",
    ),
    "KL coefficient lost on resume": Fault(
        file="trainer/checkpointing.py",
        old='run.algorithm.kl.load_state(state["kl"])',
        new="pass",
        rooms="run_dir trainer",
    ),
    "prompts begin anew on resume": Fault(
        file="trainer/checkpointing.py",
        old='run.prompts.load_state(state["prompts"])',
        new="pass",
        rooms="run_dir trainer",
    ),
    "seed ignored": Fault(
        file="trainer/run.py",
        old="repr((self.config.run.seed, step, *purpose))",
        new="repr((0, step, *purpose))",
        rooms="trainer",
        rest="cli/test_train_command.py",
    ),
    "a judge's answer not asked for again": Fault(
        file="rewards/judge/call.py",
        old="if await self._goes_on(fault, course):",
        new="if False and await self._goes_on(fault, course):",
        rooms="rewards/judge",
    ),
}


class Copy:
    """A copy of the project, in which a fault is planted and removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "copy"
        shutil.copytree(ROOT, self.folder, ignore=LEFT_OUT)
        if (shared := ROOT.parent / "shared").is_dir():
            (folder / "shared").symlink_to(shared)

    def run(self, *words: str) -> tuple[int, str]:
        """pytest's exit code and output; in a fork, which has the large packages already."""
        log = self.folder.with_name("log")
        child = os.fork()
        if not child:
            self._become_pytest(log, ["-x", "--tb=no", "-rfE", "-W", IMPORTED, *words])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, log.read_text()

    def _become_pytest(self, log: Path, words: list[str]) -> NoReturn:
        code = 3
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.chdir(self.folder)
            os.environ["PYTHONPATH"] = str(self.folder)
            sys.path.insert(0, str(self.folder))
            code = int(pytest.main(words))
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def find(self, fault: Fault, *, only_fast: bool) -> tuple[str, str] | None:
        """("--fast" or "whole", the test that fails), or None. Exits when tests cannot run."""
        path = self.folder / "rlcli" / fault.file
        plain = path.read_text()
        if plain.count(fault.old) != 1:
            raise SystemExit(f"{fault.file}: {plain.count(fault.old)} places for: {fault.old}")
        path.write_text(plain.replace(fault.old, fault.new))
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
        try:
            found = self._first_failure("--fast", *places(fault.rooms)), "--fast"
            if found[0] is None and fault.rest and not only_fast:
                found = self._first_failure(*places(fault.rest)), "whole"
        finally:
            path.write_text(plain)
        test, by = found
        return None if test is None else (by, test)

    def _first_failure(self, *words: str) -> str | None:
        code, output = self.run(*words)
        if code == 0:
            return None
        failed = FAILED.findall(output)
        if code != 1 or not failed:
            raise SystemExit(f"pytest {' '.join(words)} could not run:\n{output[-3000:]}")
        return failed[0]

    def check_passes(self, tests: list[str]) -> None:
        """Exits when one of the tests fails without a fault."""
        code, output = self.run(*tests)
        if code:
            raise SystemExit(f"these fail without a fault:\n{output[-3000:]}")


def places(names: str) -> list[str]:
    """Paths of rooms of the tests."""
    return [f"tests/{name}" for name in names.split()]


def main() -> int:
    """Plant each fault; 0 when all were found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="all, where none is given")
    parser.add_argument("--fast", action="store_true")
    words = parser.parse_args()
    if unknown := set(words.names) - FAULTS.keys():
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    chosen = {name: FAULTS[name] for name in words.names or FAULTS}
    finds: dict[str, tuple[str, str] | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        print(f"{'fault':40} {'found by':8} {'s':>5}  first test that fails")
        for name, fault in chosen.items():
            begun = time.monotonic()
            finds[name] = found = copy.find(fault, only_fast=words.fast)
            by, test = found or ("nothing", "")
            print(f"{name:40} {by:8} {time.monotonic() - begun:5.0f}  {test}", flush=True)
        copy.check_passes(sorted({found[1] for found in finds.values() if found is not None}))
    counts = [found[0] for found in finds.values() if found is not None]
    print(f"by --fast: {counts.count('--fast')} of {len(chosen)}; in all: {len(counts)}")
    return int(len(counts) < len(chosen))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            sys.exit(2)
        raise
