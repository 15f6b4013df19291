"""A judge in a process of its own: serves calls from its parent until their connection closes.

Runs as `python -m rlcli.rewards.judge.child CONNECTION_FD`. What comes first says what to judge
with, keys included, so that neither the command line nor the environment has them.
"""

from __future__ import annotations

import sys
import threading
import traceback
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from rlcli.errors import RlcliError
from rlcli.rewards.judge.messages import CLOSE, Answer, Call, Opening
from rlcli.rewards.judge.scorer import JudgeScorer


def main() -> None:
    """Serve calls; the end of the connection is the end of the process."""
    connection = Connection(int(sys.argv[1]))
    opening: Opening = connection.recv()
    try:
        scorer = JudgeScorer(
            opening.config, env=opening.env, lang=opening.lang, run_dir=opening.run_dir
        )
    except RlcliError as error:
        connection.send(error)
        return
    scorer.load_state(opening.state)
    try:
        _serve(connection, scorer)
    finally:
        scorer.close()


def _serve(connection: Connection, scorer: JudgeScorer) -> None:
    lock = threading.Lock()

    def send(answer: Answer) -> None:
        with lock, suppress(OSError):  # a parent that is gone needs no answer
            connection.send(answer)

    def send_outcome(number: int, future: Future[Any]) -> None:
        try:
            send(Answer(number=number, value=future.result()))
        except CancelledError:
            return
        except RlcliError as error:
            send(Answer(number=number, error=error))
        except Exception as error:  # a bug; any other exception may not survive the way
            traceback.print_exception(error)
            send(Answer(number=number, error=RuntimeError(f"{type(error).__name__}: {error}")))

    while True:
        try:
            call: Call = connection.recv()
        except (EOFError, OSError):
            return
        if call.method == CLOSE:
            return
        outcome = getattr(scorer, call.method)(*call.arguments)
        if isinstance(outcome, Future):
            outcome.add_done_callback(partial(send_outcome, call.number))
        else:
            send(Answer(number=call.number, value=outcome))


if __name__ == "__main__":
    main()
