"""What a rank other than 0 does: its share of what rank 0 says, until it says stop."""

from __future__ import annotations

import pickle
import traceback
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from rlcli.crew.meet import is_broken_collective, why_broken
from rlcli.crew.parcel import receive
from rlcli.crew.watch import stack_dump
from rlcli.crew.words import BEAT_S, Outbox
from rlcli.engines.base import PolicyObjective, TrainEngine
from rlcli.engines.packing import on_device
from rlcli.errors import RankLostError
from rlcli.rollout.base import Sampler, SamplingParams
from rlcli.types import Advantages, AnnotatedBatch, Batch, Prompt, Rollout


def follow(
    connection: Connection,
    engine: TrainEngine,
    sampler: Sampler,
    objective: PolicyObjective,
    *,
    seed: tuple[int, int],
    log: Path,
    beat_s: float = BEAT_S,
) -> bool:
    """Serve rank 0 until it says stop; whether the run ended well.

    seed: the run's, and the rank. log: where the stack goes when something takes too long.
    Raises: RankLostError when rank 0 is gone; an error of this rank, after telling rank 0 of it.
    """
    with closing(Outbox(connection, beat_s=beat_s)) as outbox:
        follower = _Follower(outbox, engine, sampler, objective, seed)
        while True:
            try:
                name, args, has_parcel = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError) as error:
                raise RankLostError("rank 0 is gone") from error
            if name == "stop":
                sampler.close()
                return bool(args[0])
            outbox.begin()
            try:
                with stack_dump(log):
                    if has_parcel:
                        args = (receive(), *args)
                    getattr(follower, name)(*args)
                outbox.end("done")
            except Exception as error:
                with suppress(OSError):
                    if is_broken_collective(error):  # another rank is its cause
                        outbox.end("lost", why_broken(error))
                    else:
                        outbox.end("error", _said(error))
                raise


def _said(error: Exception) -> str:
    """What rank 0 tells of it: the error and where it came from."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


class _Follower:
    """One method per command."""

    def __init__(
        self,
        outbox: Outbox,
        engine: TrainEngine,
        sampler: Sampler,
        objective: PolicyObjective,
        seed: tuple[int, int],
    ) -> None:
        self._outbox, self._objective, self._seed = outbox, objective, seed
        self._engine, self._sampler = engine, sampler
        self._annotated: AnnotatedBatch | None = None

    def load_weights(self, version: int) -> None:
        self._sampler.load_weights(self._engine.weights(), version=version)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        seed: int,
        places: Sequence[int],
        reports: bool,
    ) -> None:
        def report(index: int, rollout: Rollout) -> None:
            self._outbox.say("rollout", index, rollout)

        on_finish = report if reports else None
        self._sampler.generate(prompts, params, seed=seed, places=places, on_finish=on_finish)

    def annotate(self, batch: Batch) -> None:
        self._sampler.rest()
        self._annotated = self._engine.annotate(batch, self._objective)

    def update(self, advantages: Advantages, step: int) -> None:
        assert self._annotated is not None
        # dropout of adapters: drawn anew for each step and rank, so that a resumed run draws alike
        torch.manual_seed(zlib.crc32(repr((*self._seed, step)).encode()))
        aims = on_device(advantages, self._engine.device)
        self._engine.update(self._annotated, aims, self._objective, step=step)
        self._annotated = None

    def state(self) -> None:
        self._engine.state()

    def load_state(self, folder: Path) -> None:
        self._engine.load_state(folder)

    def save_model(self) -> None:
        self._engine.save_model(None, None, merge_lora=False)
