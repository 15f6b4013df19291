"""One rank of several that train together, one run after the other.

python tests/support/loop_ranks.py FOLDER CASES

Reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE

CASES: a JSON object of settings by the name of a run's directory in FOLDER.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch._C._distributed_c10d import PrefixStore

from rlcli.config.resolver import resolve
from rlcli.distributed.collectives import broadcast_from_rank0
from rlcli.distributed.process_group import process_group
from rlcli.distributed.rank_env import read_rank
from rlcli.errors import RlcliError
from rlcli.run_dir.find_run import open_run_dir
from rlcli.run_dir.folder import RunDir
from rlcli.trainer.run_plan import make_plan
from rlcli.trainer.session import train_together


def main() -> None:
    """Take every case in turn."""
    torch.set_num_threads(1)
    try:
        train_all()
    except RlcliError as error:
        print(error)
        sys.exit(error.exit_code)


def train_all() -> None:
    """Train the cases. Raises: on rank 0, the error of a run."""
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    ranks = read_rank(os.environ)
    assert ranks is not None
    with process_group(ranks, is_cuda=False, progress=print) as meeting:
        for name, overrides in cases.items():
            given = [f"run.output_dir={folder / name}", *overrides]
            resolved = resolve(flags={}, files=[], overrides=given, env={}, cwd=folder)
            plan = make_plan(resolved)
            found = open_run_dir(plan.resolved, folder) if ranks.rank == 0 else None
            if found is not None:
                found[0].hold(resumes=found[1] != "no")
            resume = broadcast_from_rank0([found and found[1]])[0]
            run_dir = found[0] if found else RunDir(folder / name)
            store = PrefixStore(name, meeting.store)
            train_together(
                plan, meeting.ranks, run_dir, resume, folder, [], quiet=True, store=store
            )
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    main()
