"""The rows of one call to vLLM: what is asked, what waits for an environment, what has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from rlcli.rollout.base import GoOn, NextTurn, OnFinish
from rlcli.rollout.vllm.requests import SampleRequest
from rlcli.types import Rollout

Reply = tuple[SampleRequest, Rollout, "Future[NextTurn | None]"]


class OpenRows:
    """Rows until they are over, each on its own: none waits for another one's environment.

    asked: requests for which there is no response yet, by row. on_reply: called in another thread
    when an environment has replied.
    """

    def __init__(
        self,
        asked: Sequence[SampleRequest],
        *,
        on_finish: OnFinish | None,
        go_on: GoOn | None,
        on_reply: Callable[[], None] = lambda: None,
    ) -> None:
        self.asked = {one.index: one for one in asked}
        self.on_reply = on_reply
        self._on_finish, self._go_on = on_finish, go_on
        self._replies: SimpleQueue[Reply] = SimpleQueue()
        self._num_waiting = 0
        self._over: dict[int, Rollout] = {}

    @property
    def are_over(self) -> bool:
        """Whether every row has its last response."""
        return not self.asked and not self._num_waiting

    def take(self, one: SampleRequest, response: Rollout) -> None:
        """The response to a request."""
        del self.asked[one.index]
        if self._go_on is None:
            self._finish(one.index, response)
            return
        self._num_waiting += 1

        def reply(future: Future[NextTurn | None]) -> None:
            self._replies.put((one, response, future))
            self.on_reply()

        self._go_on(one.index, response).add_done_callback(reply)

    def next_requests(self, *, waits: bool = False) -> list[SampleRequest]:
        """Requests of the rows whose environments have replied since the last call.

        waits: for one reply at least.
        """
        found: list[SampleRequest] = []
        while self._num_waiting and (waits or not self._replies.empty()):
            waits = False
            one, response, future = self._replies.get()
            self._num_waiting -= 1
            after = future.result()
            if after is None:
                self._finish(one.index, response)
                continue
            following = self.asked[one.index] = one.next_turn(response, after)
            found.append(following)
        return found

    def rollouts(self) -> list[Rollout]:
        """The last response of each row, in order."""
        return [self._over[index] for index in sorted(self._over)]

    def _finish(self, index: int, response: Rollout) -> None:
        self._over[index] = response
        if self._on_finish is not None:
            self._on_finish(index, response)
