"""The ranks of a run while it lasts: their exchanges, and the cause if one fails."""

from __future__ import annotations

import atexit
import os
import pickle
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from rlcli.distributed.agree import log_path
from rlcli.distributed.collectives import Ranks
from rlcli.distributed.lines import named
from rlcli.distributed.process_group import is_broken_collective, is_closed, why_broken
from rlcli.distributed.rank_env import RankEnv
from rlcli.distributed.watchdog import Heartbeats
from rlcli.errors import RankError, RankLostError

T = TypeVar("T")
SLICE_S = 1.0
NO_LIMIT = timedelta(days=365)
LAST_WORDS_S = 10.0
"""How long to wait for other ranks to post why they ended."""


class LiveRanks(Ranks):
    """Exchanges values among the ranks of a run, for as long as every rank sends heartbeats.

    Ranks may come to an exchange at very different times: one samples long responses, rank 0 writes
    a checkpoint. So exchanges use their own process group, without a timeout. Only the thread that
    trains makes them.
    """

    def __init__(self, env: RankEnv, store: Store, run_dir: Path, **limits: float) -> None:
        super().__init__(env.rank, env.world_size)
        self.env = env
        self._group: Any = dist.new_group(backend="gloo", timeout=NO_LIMIT)
        log = log_path(run_dir, env.rank)
        self.watch = Heartbeats(env.rank, env.world_size, store, log, **limits)
        self._exit_code: int | None = None
        atexit.register(self._leave)

    def _leave(self) -> None:
        """End a process that gave up an exchange: a thread of gloo still waits in it, for ever."""
        if self._exit_code is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._exit_code)

    def doing(self, name: str) -> AbstractContextManager[None]:
        """See Ranks."""
        return self.watch.doing(name)

    def gather(self, value: T) -> list[T]:
        """See Ranks."""
        data = pickle.dumps(value)
        lengths = self._all_gather(torch.tensor([len(data)]))
        found = self._all_gather(_padded(data, max(lengths)))
        pairs = zip(found, lengths, strict=True)
        return [pickle.loads(each[:length].numpy().tobytes()) for each, length in pairs]

    def first(self, value: T) -> T:
        """See Ranks."""
        data = pickle.dumps(value) if self.is_first else b""
        length = torch.tensor([len(data)])
        self._wait(dist.broadcast(length, src=0, group=self._group, async_op=True))
        found = _padded(data, length)
        self._wait(dist.broadcast(found, src=0, group=self._group, async_op=True))
        return pickle.loads(found.numpy().tobytes())

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """See Ranks."""
        lengths = self.gather(len(data))
        own = _padded(data, max(lengths))
        found = [torch.empty_like(own) for _ in lengths] if self.is_first else None
        self._wait(dist.gather(own, found, dst=0, group=self._group, async_op=True))
        pairs = zip(found or [], lengths, strict=False)
        return [each[:length].numpy().tobytes() for each, length in pairs]

    def _all_gather(self, own: Tensor) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.size)]
        self._wait(dist.all_gather(found, own, group=self._group, async_op=True))
        return found

    def _wait(self, work: Any) -> None:
        """Wait for all ranks. Raises: RankError, RankLostError if one has failed or is silent."""
        while not _is_over(work):
            failure, given_up = self.watch.failure(), self.watch.given_up
            if failure or given_up:
                error = RankError(failure) if failure else RankLostError(given_up)
                self._exit_code = error.exit_code
                raise error

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Inside, an error that another rank caused is replaced by one that names that rank.

        Raises: RankError, RankLostError. An error of this rank is raised unchanged, and posted for
        the others.
        """
        try:
            yield
        except (RankError, RankLostError) as error:
            self.watch.post_lost()
            if isinstance(error, RankLostError) and (failure := self.watch.failure()):
                raise RankError(failure) from error
            raise
        except Exception as error:
            if not is_broken_collective(error):
                self.watch.post_failure(f"rank {self.rank} failed: {_said(error)}")
                raise
            raise self._cause(error) from error

    def _cause(self, error: Exception) -> RankError | RankLostError:
        """The error that names the rank that failed first, is gone or keeps the others waiting."""
        self.watch.post_lost()
        late, until_s = self.watch.late - {self.rank}, time.monotonic() + LAST_WORDS_S
        while True:
            if failure := self.watch.failure():
                return RankError(failure)
            missing = set(self.watch.unaccounted())
            if missing <= late or time.monotonic() >= until_s or self.rank:
                break
            time.sleep(0.1)
        why = why_broken(error)
        if self.watch.given_up:
            return RankLostError(self.watch.given_up)
        if missing and not self.rank and is_closed(error) and not missing & self.watch.silent:
            return RankLostError(f"{named(missing)} is gone")
        if missing := missing & (late | self.watch.silent):
            name = self.watch.name_of(min(missing))
            return RankLostError(f"{named(missing)} did not answer in {name}")
        return RankLostError(f"rank {self.rank} lost contact with another: {why}")

    def close(self) -> None:
        """Stop the heartbeats."""
        self.watch.close()


def _is_over(work: Any) -> bool:
    """Wait for SLICE_S at most; whether `work` has ended. Raises: the error it ended with."""
    try:
        work.wait(timedelta(seconds=SLICE_S))
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()
    return True


def _padded(data: bytes, length: Tensor | int) -> Tensor:
    """`data`, with zeros up to `length`."""
    out = torch.zeros(int(length), dtype=torch.uint8)
    if data:
        out[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return out


def _said(error: Exception) -> str:
    """The error and where it came from."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
