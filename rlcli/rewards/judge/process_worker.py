"""A judge in its own process: serves calls from its parent until the pipe closes.

Runs as `python -m rlcli.rewards.judge.process_worker CONNECTION_FD`. The first message holds the
judge's configuration and its keys, which therefore appear on no command line and in no environment.
"""

from __future__ import annotations

import fcntl
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from rlcli.errors import RlcliError
from rlcli.rewards.judge.messages import Answer, Call, Opening
from rlcli.rewards.judge.scorer import CLOSE_S, LEDGER, JudgeScorer
from rlcli.rewards.parent_pipe import ParentGone, ParentPipe
from rlcli.system.hardware import be_killed_first


def main() -> None:
    """Serve calls from the parent until its end of the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the trainer decides; without it the pipe ends
    be_killed_first()
    with suppress(ParentGone):
        _judge(ParentPipe(int(sys.argv[1])))


def _judge(pipe: ParentPipe) -> None:
    """Judge as the opening message asks, until the last call. Raises: ParentGone."""
    opening: Opening = pickle.loads(pipe.receive())
    with _alone(opening.run_dir / LEDGER):
        try:
            scorer = JudgeScorer(
                opening.config,
                env=opening.env,
                lang=opening.lang,
                run_dir=opening.run_dir,
                template=opening.template,
            )
        except RlcliError as error:
            pipe.send(pickle.dumps(error))
            return
        scorer.load_state(opening.state)
        try:
            _serve(pipe, scorer)
        finally:
            scorer.close()


@contextmanager
def _alone(ledger: Path) -> Iterator[None]:
    """The ledger is this process's: one that a killed run left may still write what it spent."""
    with open(ledger, "ab") as file:
        deadline = time.monotonic() + 2 * CLOSE_S
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.05)
        yield


def _serve(pipe: ParentPipe, scorer: JudgeScorer) -> None:
    lock = threading.Lock()  # answers come from the judge's thread too

    def send(answer: Answer) -> None:
        with lock, suppress(ParentGone):  # the next `receive` ends the process
            pipe.send(pickle.dumps(answer))

    def send_outcome(number: int, future: Future[Any]) -> None:
        try:
            send(Answer(number=number, value=future.result()))
        except RlcliError as error:
            send(Answer(number=number, error=error))
        except CancelledError:
            send(Answer(number=number, error=CancelledError()))
        except Exception as error:  # a bug; any other exception may not survive the way
            said = f"{type(error).__name__}: {error}"
            send(Answer(number=number, error=RuntimeError(said)))
            with suppress(OSError):
                traceback.print_exception(error)

    while True:
        call: Call = pickle.loads(pipe.receive())
        if call.method is None:
            return
        outcome = getattr(scorer, call.method)(*call.arguments)
        if isinstance(outcome, Future):
            outcome.add_done_callback(partial(send_outcome, call.number))
        else:
            send(Answer(number=call.number, value=outcome))


if __name__ == "__main__":
    main()
