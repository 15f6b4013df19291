"""Calls start one after the other, and none is forgotten."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from virtual_time import run_at_once

from rlcli.rewards.judge.send_pacing import SENDING, Turns


class Wire:
    """Builds a call, and sends it two rounds of the loop later, as the SDKs do."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def ask(self, request: Any) -> Any:
        self.log.append(f"build {request}")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.log.append(f"send {request}")
        await asyncio.sleep(0.01)
        self.log.append(f"answer {request}")
        return request


def test_a_call_is_sent_before_the_next_is_built_and_nobody_waits_for_an_answer() -> None:
    wire = Wire()

    turns = Turns(apart=SENDING)

    async def call(number: int) -> Any:
        await turns.take()
        return await wire.ask(number)

    async def all_calls() -> list[Any]:
        return await asyncio.gather(*(call(i) for i in range(4)))

    assert run_at_once(all_calls()) == [0, 1, 2, 3]
    starts = [f"{word} {i}" for i in range(4) for word in ("build", "send")]
    assert wire.log == [*starts, *(f"answer {i}" for i in range(4))]


def test_turns_are_as_many_rounds_apart_as_asked_for() -> None:
    for apart in (0, 1, 3):
        at: list[int] = []
        run_at_once(_count_rounds(Turns(apart=apart), at))
        assert [b - a for a, b in itertools.pairwise(at[1:])] == [apart + 1] * 3


async def _count_rounds(turns: Turns, at: list[int]) -> None:
    rounds = 0

    async def one() -> None:
        await turns.take()
        at.append(rounds)

    works = [asyncio.ensure_future(one()) for _ in range(5)]
    while not all(work.done() for work in works):
        rounds += 1
        await asyncio.sleep(0)


def test_one_that_gives_up_while_it_waits_holds_up_nobody() -> None:
    async def some_give_up() -> list[int]:
        turns, done = Turns(apart=2), []

        async def one(number: int) -> None:
            await turns.take()
            done.append(number)

        works = [asyncio.ensure_future(one(i)) for i in range(6)]
        await asyncio.sleep(0)
        for index in (1, 2, 5):
            works[index].cancel()
        await asyncio.wait(works, timeout=5)
        await asyncio.sleep(0)
        await one(6)  # and there is a turn again when all have had theirs
        return done

    assert run_at_once(some_give_up()) == [0, 3, 4, 6]


def test_one_cancelled_in_its_own_turn_passes_it_on() -> None:
    async def dies_in_turn() -> list[int]:
        turns, done = Turns(apart=0), []

        async def one(number: int) -> None:
            await turns.take()
            done.append(number)

        works = [asyncio.ensure_future(one(i)) for i in range(3)]
        await asyncio.sleep(0)  # all have asked; the second one's turn comes in the next round
        asyncio.get_running_loop().call_soon(works[1].cancel)
        await asyncio.wait(works, timeout=5)
        return done

    assert 2 in run_at_once(dies_in_turn())
