"""What every reward is to the loop: rollouts in, one `Reward` each out, while sampling goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from rlcli.types import Prompt, Reward, Rollout, StepRecord

T = TypeVar("T")


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

    def normalize(self, rewards: Sequence[Reward], *, update_stats: bool) -> list[Reward]:
        """This rank's rewards of one step, or of one evaluation, on their final scale.

        Collective, like `metrics`: all ranks call both in the same order.
        learns: whether to update a running mean and deviation.
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
    """Base class of scorers without state, metrics, canaries or a final scale."""

    def canaries(self, step: int, prompts: Sequence[Prompt]) -> list[Future[Reward]]:
        """None."""
        return []

    def normalize(self, rewards: Sequence[Reward], *, update_stats: bool) -> list[Reward]:
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
    """Collectives and facts of the ranks for their scorers. All ranks call them in the same order.

    local_size: number of ranks on this machine. host: rank 0's address. gather: collects a value
    from every rank. first: broadcasts rank 0's value. prompts: all prompts that may be scored, the
    same on every rank.
    """

    is_first: bool
    local_size: int
    host: str
    gather: Callable[[Any], list[Any]]
    first: Callable[[Any], Any]
    prompts: Sequence[Prompt]


def single_rank(value: T) -> list[T]:
    """`Peers.gather` of a run with one rank."""
    return [value]


def text_rollout(prompt: Prompt, text: str) -> Rollout:
    """A complete response without tokens."""
    return Rollout(
        prompt=prompt,
        text=text,
        token_ids=(),
        logprobs=(),
        finish_reason="stop",
        policy_version=0,
    )


def score_all(scorer: Scorer, rollouts: Sequence[Rollout]) -> list[Reward]:
    """Rewards in the order of `rollouts`, when all are there."""
    futures = [scorer.submit(rollout) for rollout in rollouts]
    return [future.result() for future in futures]
