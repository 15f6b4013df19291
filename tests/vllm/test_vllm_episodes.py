"""Episodes with real vLLM: the same turns as the native sampler, and no row waits for another."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Event
from types import SimpleNamespace

import pytest
from native_parts import sampler as native_sampler
from scripted_turns import ScriptedTurns
from vllm_parts import EOS, largest_gap, prompts, reference, tokens, trainer_and_sampler

from rlcli.rollout.base import NextTurn, SamplingParams
from rlcli.types import Rollout

PARAMS = SamplingParams(n=3, max_tokens=8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with trainer_and_sampler(tmp_path_factory.mktemp("model")) as made:
        yield made


def script() -> ScriptedTurns:
    return ScriptedTurns(most=4, reply_tokens=8, turn_tokens=8)


def test_greedy_turns_are_those_of_the_native_sampler(pair: SimpleNamespace) -> None:
    """Read at once behind kept keys and values, or sent again as a longer prompt."""
    greedy = replace(PARAMS, n=1, temperature=0.0)
    native = native_sampler(pair.engine.policy, pair.sampler.tokenizer, eos_token_ids=EOS)
    found: list[dict[int, list[Rollout]]] = []
    for sampler in (native, pair.sampler):
        turns = script()
        sampler.generate(prompts(12), greedy, seed=1, go_on=turns.go_on)
        found.append(turns.turns)
    own, other = found
    assert {len(turns) for turns in own.values()} == {1, 2, 3, 4}
    assert {row: tokens(turns) for row, turns in own.items()} == {
        row: tokens(turns) for row, turns in other.items()
    }


def test_what_is_drawn_does_not_depend_on_how_fast_an_environment_is(
    pair: SimpleNamespace,
) -> None:
    """The first row's environment replies only when all others are over."""
    fast, slow = script(), script()
    pair.sampler.generate(prompts(4), PARAMS, seed=3, go_on=fast.go_on)
    others_are_over = Event()
    num_over = 0

    def go_on(index: int, turn: Rollout) -> Future[NextTurn | None]:
        nonlocal num_over
        future = slow.go_on(index, turn)
        num_over += future.result() is None
        if num_over == 11:
            others_are_over.set()
        return pool.submit(late, future) if index == 3 else future

    def late(future: Future[NextTurn | None]) -> NextTurn | None:
        others_are_over.wait()
        return future.result()

    with ThreadPoolExecutor() as pool:
        pair.sampler.generate(prompts(4), PARAMS, seed=3, go_on=go_on)
    assert [tokens(slow.turns[row]) for row in range(12)] == [
        tokens(fast.turns[row]) for row in range(12)
    ]
    turns = [turn for row in fast.turns.values() for turn in row]
    assert largest_gap(reference(pair), turns) < 1e-4


def test_environments_of_all_rows_work_at_once(pair: SimpleNamespace) -> None:
    """64 episodes, more than are sampled at once: no tool returns before all have been called."""
    together = Barrier(64)
    counts = [0] * 64

    def reply() -> NextTurn:
        together.wait(120)
        return NextTurn(token_ids=(70, 71), max_tokens=8)

    def go_on(index: int, turn: Rollout) -> Future[NextTurn | None]:
        counts[index] += 1
        if counts[index] == 2:
            return pool.submit(lambda: None)
        return pool.submit(reply)

    with ThreadPoolExecutor(64) as pool:
        pair.sampler.generate(prompts(4), replace(PARAMS, n=16), seed=3, go_on=go_on)
    assert counts == [2] * 64


def test_an_engine_that_fails_goes_on_with_the_turns_that_are_open(
    pair: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = script(), script()
    pair.sampler.generate(prompts(4), PARAMS, seed=3, go_on=whole.go_on)
    sampler, step, count = pair.sampler, pair.sampler._step, 0

    def failing() -> object:
        nonlocal count
        count += 1
        if count == 12:
            from rlcli.rollout.vllm.local_sampler import EngineFailedError

            raise EngineFailedError("broken")
        return step()

    monkeypatch.setattr(sampler, "_step", failing)
    sampler.generate(prompts(4), PARAMS, seed=3, go_on=broken.go_on)
    assert count > 12
    assert [tokens(broken.turns[row]) for row in range(12)] == [
        tokens(whole.turns[row]) for row in range(12)
    ]
