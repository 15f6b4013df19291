"""What every reward is to the loop: rollouts in, one `Reward` each out, while sampling goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from rlcli.types import Prompt, Reward, Rollout, StepRecord


class Scorer(Protocol):
    """Scores rollouts. A failure is a `Reward` without a value, never an exception and never 0."""

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        """Begin to score one rollout; returns at once.

        before: what an earlier try left unscored; the parts it has are not asked for again.
        The future raises Paused when a service cannot be asked any more.
        """
        ...

    def can_recover(self, unscored: Reward) -> bool:
        """Whether waiting can help with it: a judge can come back, a function not."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept, under whichever reward it was.

        Also from what a step began with that is given up; money that was spent stays spent.
        """
        ...

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        """Known bad answers to some of these prompts being scored, where the step is due.

        Their scores say how far a judge can be talked round; no update sees them.
        """
        ...

    def settle(self, rewards: Sequence[Reward], *, learns: bool) -> list[Reward]:
        """This rank's rewards of one step, or of one evaluation, on their final scale.

        Every rank calls it at the same places, and `metrics`.
        learns: whether a running mean and deviation may take them in.
        """
        ...

    def trouble(self) -> str | None:
        """Why scores do not come, said once until they come again; None where there is no news."""
        ...

    def metrics(self) -> StepRecord:
        """What happened since the last call, such as `judge/cache_hits`."""
        ...

    def close(self) -> None:
        """Stop; what is still being scored is given up."""
        ...


class StatelessScorer:
    """The part of a `Scorer` without state, metrics and canaries."""

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        """None."""
        return []

    def settle(self, rewards: Sequence[Reward], *, learns: bool) -> list[Reward]:
        """The rewards as they are."""
        return [*rewards]

    def trouble(self) -> str | None:
        """Nothing."""
        return None

    def metrics(self) -> StepRecord:
        """Nothing is counted."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """The ranks of a run, as its scorers see them. Every rank calls the same methods in turn.

    local_size: ranks on this machine. host: rank 0's address for the others. gather: a value of
    every rank. first: rank 0's value. prompts: all that may be scored, the same on every rank.
    """

    is_first: bool
    local_size: int
    host: str
    gather: Callable[[Any], list[Any]]
    first: Callable[[Any], Any]
    prompts: Sequence[Prompt]


def score_all(scorer: Scorer, rollouts: Sequence[Rollout]) -> list[Reward]:
    """Rewards in the order of `rollouts`, when all are there."""
    futures = [scorer.submit(rollout) for rollout in rollouts]
    return [future.result() for future in futures]
