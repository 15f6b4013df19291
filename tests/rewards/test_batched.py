"""Batches that form while sampling goes on, and what closing leaves of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from rlcli.rewards.batched_scorer import BatchScorer
from rlcli.types import Reward, Rollout


class Lengths:
    """A rater by length of text that can be held up."""

    is_service = False
    max_batch = 4

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.is_open = threading.Event()
        self.is_open.set()

    def rate(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        self.sizes.append(len(rollouts))
        assert self.is_open.wait(60)
        return [Reward(value=float(len(r.text))) for r in rollouts]

    def close(self) -> None:
        self.is_open.set()


def test_a_batch_whose_every_rollout_was_given_up_is_not_sent(rollout: Any) -> None:
    rater = Lengths()
    rater.is_open.clear()
    scorer = BatchScorer(rater)
    held = [scorer.submit(rollout("x")) for _ in range(4)]
    while not rater.sizes:
        pass
    assert all(scorer.submit(rollout("y")).cancel() for _ in range(4))
    rater.is_open.set()
    assert [future.result(timeout=60).value for future in held] == [1.0] * 4
    assert scorer.submit(rollout("zz")).result(timeout=60).value == 2.0
    scorer.close()
    assert 0 not in rater.sizes


def test_a_submit_that_overtakes_a_close_is_refused_or_ended(
    rollout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The close happens between the look at the flag and the put."""
    scorer = BatchScorer(Lengths())
    closing = threading.Thread(target=scorer.close)

    class Late:
        def __init__(self, jobs: Any) -> None:
            self._jobs = jobs

        def put(self, job: Any) -> None:
            if job is not None and not closing.is_alive():
                closing.start()
                closing.join(timeout=0.2)
            self._jobs.put(job)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._jobs, name)

    monkeypatch.setattr(scorer, "_jobs", Late(scorer._jobs))
    future = scorer.submit(rollout("x"))
    closing.join(timeout=60)
    assert not closing.is_alive()
    assert future.done()
