"""A signal to any rank stops the run by rank 0, which saves for all."""

from __future__ import annotations

from pathlib import Path

import pytest
from launched import run_ranks

RANK = """
import os, signal, sys, time
from pathlib import Path
from rlcli.distributed.live_ranks import LiveRanks
from rlcli.distributed.process_group import process_group
from rlcli.system.signals import StopRequest
from rlcli.distributed.rank_env import read_rank

me, number = read_rank(os.environ), int(sys.argv[1])
with process_group(me, is_cuda=False, progress=print) as meeting:
    ranks = LiveRanks(me, meeting.store, Path(os.environ["TEST_RUN_DIR"]))
    if me.rank:
        ranks.watch.pass_on_stops()
    else:
        stop = ranks.watch.stop = StopRequest()
        stop.install()
    ranks.gather(None)
    if me.rank == 1:
        os.kill(os.getpid(), number)
    if not me.rank:
        until_s = time.monotonic() + 60
        while stop.signal is None and time.monotonic() < until_s:
            time.sleep(0.01)
        assert stop.signal == number
        time.sleep(2)  # a second Ctrl-C would end this process at once
    ranks.gather(None)
    ranks.close()
    print("well", flush=True)
"""


@pytest.mark.parametrize("number", [15, 2])
def test_rank_0_obeys_a_signal_that_another_rank_received_once(number: int, tmp_path: Path) -> None:
    for code, said in run_ranks(3, ["-c", RANK, number], TEST_RUN_DIR=str(tmp_path)):
        assert code == 0, said
        assert "well" in said
