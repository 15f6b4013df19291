"""Rank 0 runs the loop; the other ranks do their share of what it says, and report.

A sampler and an engine that look like those of one process: they tell the crew, do rank 0's share
here, and wait. What is added up between ranks, and the step itself, go through torch.distributed;
commands, rollouts and errors go through one connection per rank.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
from torch import Tensor

from rlcli.crew.lines import limit, named
from rlcli.crew.meet import is_broken_collective, why_broken
from rlcli.crew.parcel import Parcel, pack, send
from rlcli.crew.watch import FIRST_WORD_S, PATIENCE_S, Watch, stack_dump
from rlcli.crew.words import BEAT_S, Inbox
from rlcli.engines.base import EngineState, PolicyObjective, TrainEngine
from rlcli.engines.ranks import spread
from rlcli.errors import RankError, RankLostError
from rlcli.rollout.base import OnFinish, Sampler, SamplingParams
from rlcli.types import Advantages, AnnotatedBatch, Batch, Prompt, Rollout, StepRecord

LAST_WORDS_S = 10.0
"""How long a rank has to say why it left."""
LATE_WORDS_S = 2.0
"""The same where all that have said nothing are those that the others wait for."""


class _BystanderError(RankLostError):
    """A rank lost contact with another, which is the one to name."""


class Crew:
    """The other ranks, as rank 0 sees them. connections: of ranks 1, 2, ...

    log: where rank 0's stack goes when it waits too long. beat_s: that of the ranks. patience_s:
    how long one may be silent that is waited for.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        log: Path,
        *,
        first_word_s: float = FIRST_WORD_S,
        beat_s: float = BEAT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._connections = dict(enumerate(connections, start=1))
        for connection in connections:
            limit(connection, patience_s)
        self._inboxes = {rank: Inbox(line) for rank, line in self._connections.items()}
        self._log, self._patience_s = log, patience_s
        self._bystanders = set[int]()
        self.watch = Watch(self._inboxes, first_word_s=first_word_s, beat_s=beat_s)

    @property
    def size(self) -> int:
        """All ranks, this one included."""
        return len(self._connections) + 1

    def tell(self, rank: int, name: str, *args: Any) -> None:
        """Have one rank do something. Raises: RankLostError, RankError."""
        self._send(rank, pickle.dumps((name, args, False)))

    def tell_all(self, name: str, *args: Any, has_parcel: bool = False) -> None:
        """Have every rank do something, where has_parcel with what is sent to all next."""
        words = pickle.dumps((name, args, has_parcel))
        for rank in self._connections:
            self._send(rank, words)

    def _send(self, rank: int, words: bytes) -> None:
        try:
            self._connections[rank].send_bytes(words)
        except BlockingIOError as error:
            raise self._silent([rank]) from error
        except OSError:
            self._explain(rank)

    def hear(self, rank: int, on_news: Callable[..., None] | None = None) -> None:
        """Wait until a rank is done; what it reports before goes to `on_news`.

        Raises: RankError with its traceback, RankLostError, where it is silent for too long too.
        """
        while words := self._take(rank, self._patience_s):
            what, *said = words
            if what == "done":
                self.watch.done(rank)
                return
            assert on_news is not None
            on_news(*said)
        raise self._silent([rank])

    def _silent(self, ranks: Collection[int]) -> RankLostError:
        return RankLostError(f"{named(ranks)} did not answer in {self.watch.name}")

    def _take(self, rank: int, timeout_s: float) -> tuple[Any, ...] | None:
        """What a rank says next; None where it is silent for so long."""
        try:
            words = self._inboxes[rank].take(timeout_s)
        except BlockingIOError as error:
            raise self._silent([rank]) from error
        except (EOFError, OSError) as error:
            raise RankLostError(f"rank {rank} is gone") from error
        if words is not None and words[0] == "error":
            raise RankError(f"rank {rank} failed: {words[1]}")
        if words is not None and words[0] == "lost":
            self._bystanders.add(rank)
            raise _BystanderError(f"rank {rank} lost contact with another: {words[1]}")
        return words

    @contextmanager
    def dumping(self) -> Iterator[None]:
        """Inside, rank 0's stack goes to its log before patience ends."""
        with stack_dump(self._log, patience_s=self._patience_s):
            yield

    @contextmanager
    def doing(self, name: str, *args: Any, parcel: Parcel | None = None) -> Iterator[None]:
        """Tell all ranks, do the same here, wait for all. parcel: their first argument.

        Raises: RankError or RankLostError in place of what a collective ends with here when
        another rank has left it.
        """
        self.watch.begin(name)
        try:
            with self.dumping():
                self.tell_all(name, *args, has_parcel=parcel is not None)
                if parcel is not None:
                    send(parcel)
                yield
                self.watch.done(0)
                for rank in self._connections:
                    self.hear(rank)
        except (RuntimeError, _BystanderError) as error:
            self._find_cause(error)
            raise
        finally:
            self.watch.end()

    def _find_cause(self, error: Exception) -> None:
        """The rank that left first said why, or is gone, or is the one that others wait for."""
        late, begun = self.watch.late, time.monotonic()
        lost: RankLostError | None = None
        while waiting := self._connections.keys() - self._bystanders:
            limit_s = LATE_WORDS_S if waiting <= set(late) else LAST_WORDS_S
            if time.monotonic() - begun >= limit_s:
                break
            for rank in sorted(waiting):
                try:
                    self._take(rank, 0.1)
                except _BystanderError:
                    continue
                except RankLostError as found:
                    lost = lost or found
                except RankError as found:
                    raise found from error
            if lost is not None:
                raise lost from error
        is_broken = is_broken_collective(error)
        silent = [rank for rank in late if rank not in self._bystanders]
        if silent and (is_broken or isinstance(error, _BystanderError)):
            raise self._silent(silent) from error
        if is_broken:
            why = f"rank 0 lost contact with another: {why_broken(error)}"
            raise RankLostError(why) from error

    def _explain(self, rank: int) -> None:
        """A connection that takes nothing any more may still hold its last words."""
        self.hear(rank, lambda *_: None)
        raise RankLostError(f"rank {rank} is gone")

    def dismiss(self, *, ended_well: bool = False) -> None:
        """Every rank that is still there ends; where all went well, together with this one."""
        self.watch.close()
        for connection in self._connections.values():
            with suppress(OSError):
                connection.send_bytes(pickle.dumps(("stop", (ended_well,), False)))
                connection.close()


class CrewSampler:
    """Every rank samples from a share of the prompts; groups stay whole.

    width: ranks that hold one copy of the sampled model between them: they get the same share, and
    the first of them reports.
    """

    def __init__(self, crew: Crew, sampler: Sampler, *, width: int = 1) -> None:
        self._crew, self._sampler, self._width = crew, sampler, width
        self.is_exact = sampler.is_exact

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, version: int) -> None:
        """Every rank's sampler takes them from its own engine."""
        with self._crew.doing("load_weights", version):
            self._sampler.load_weights(weights, version=version)

    def rest(self) -> None:
        """See Sampler; other ranks' make room when they annotate."""
        self._sampler.rest()

    def close(self) -> None:
        """See Sampler; other ranks close theirs when they stop."""
        self._sampler.close()

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        places: Sequence[int] | None = None,
        on_finish: OnFinish | None = None,
    ) -> list[Rollout]:
        """As one rank would sample; `on_finish` may be called by other threads, one at a time."""
        places = range(len(prompts)) if places is None else places
        costs = [len(prompt.token_ids) for prompt in prompts]
        copies = spread(range(len(prompts)), costs, self._crew.size // self._width)
        shares = [copies[rank // self._width] for rank in range(self._crew.size)]
        gathered = _Gathered(prompts, params.n, on_finish)
        listeners = [
            Thread(target=gathered.listen, args=(self._crew, rank, share))
            for rank, share in enumerate(shares)
            if rank
        ]
        self._crew.watch.begin("generate", in_step=False)
        with self._crew.dumping():
            for rank, share in enumerate(shares[1:], start=1):
                work = [prompts[i] for i in share], params, seed, [places[i] for i in share]
                self._crew.tell(rank, "generate", *work, rank % self._width == 0)
            for listener in listeners:
                listener.start()
            try:
                self._sampler.generate(
                    [prompts[i] for i in shares[0]],
                    params,
                    seed=seed,
                    places=[places[i] for i in shares[0]],
                    on_finish=gathered.taker(shares[0]),
                )
                self._crew.watch.done(0)
            finally:
                for listener in listeners:
                    listener.join()
                self._crew.watch.end()
        return gathered.all()


class _Gathered:
    """Rollouts of all ranks, in the order of their prompts."""

    def __init__(self, prompts: Sequence[Prompt], n: int, on_finish: OnFinish | None) -> None:
        self._prompts, self._n, self._on_finish = prompts, n, on_finish
        self._rollouts: dict[int, Rollout] = {}
        self._errors: list[Exception] = []
        self._lock = Lock()

    def taker(self, share: Sequence[int]) -> OnFinish:
        """Takes rollouts of a rank whose prompts are `share`."""

        def take(index: int, rollout: Rollout) -> None:
            prompt = share[index // self._n]
            at = prompt * self._n + index % self._n
            with self._lock:
                self._rollouts[at] = replace(rollout, prompt=self._prompts[prompt])
                if self._on_finish is not None:
                    self._on_finish(at, self._rollouts[at])

        return take

    def listen(self, crew: Crew, rank: int, share: Sequence[int]) -> None:
        """Take what a rank reports until it is done."""
        try:
            crew.hear(rank, self.taker(share))
        except Exception as error:  # told by `all`, in the thread that asked
            self._errors.append(error)

    def all(self) -> list[Rollout]:
        """All of them. Raises: what a rank ended with, first one that was not another's fault."""
        for error in sorted(self._errors, key=lambda error: isinstance(error, _BystanderError)):
            raise error
        return [self._rollouts[i] for i in range(len(self._prompts) * self._n)]


class CrewEngine:
    """Every rank computes its share of each pass and of each mini-batch, by its own algorithm.

    What an algorithm remembers from step to step (the KL coefficient) goes into advantages only,
    which rank 0 computes.
    """

    def __init__(self, crew: Crew, engine: TrainEngine) -> None:
        self._crew, self._engine = crew, engine

    @property
    def device(self) -> torch.device:
        """Where rank 0's tensors are."""
        return self._engine.device

    def annotate(self, batch: Batch, objective: PolicyObjective) -> AnnotatedBatch:
        """See TrainEngine. Every rank keeps the annotated batch for the update."""
        with self._crew.doing("annotate", parcel=pack(batch)):
            return self._engine.annotate(batch, objective)

    def update(
        self,
        batch: AnnotatedBatch,
        advantages: Advantages,
        objective: PolicyObjective,
        *,
        step: int,
    ) -> StepRecord:
        """See TrainEngine. The batch is the one that was annotated last."""
        with self._crew.doing("update", step, parcel=pack(advantages)):
            return self._engine.update(batch, advantages, objective, step=step)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See TrainEngine."""
        return self._engine.weights()

    def all_reduce(self, values: Tensor, /) -> Tensor:
        """Every rank has the whole batch."""
        return values

    def state(self) -> EngineState:
        """See TrainEngine; whole, on rank 0."""
        with self._crew.doing("state"):
            return self._engine.state()

    def load_state(self, folder: Path) -> None:
        """See TrainEngine."""
        with self._crew.doing("load_state", folder):
            self._engine.load_state(folder)

    def save_model(self, folder: Path | None, tokenizer: Any, *, merge_lora: bool) -> None:
        """See TrainEngine; written by rank 0."""
        with self._crew.doing("save_model"):
            self._engine.save_model(folder, tokenizer, merge_lora=merge_lora)
