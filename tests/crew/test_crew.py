"""Rank 0's hold on the others: rollouts in order, and what it says when one of them fails."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_parts import config, make_batch, make_engine

from rlcli.algos.algorithm import Algorithm
from rlcli.causal_lm import load_causal_lm, load_tokenizer
from rlcli.crew.follow import follow
from rlcli.crew.lead import Crew, CrewEngine, CrewSampler
from rlcli.crew.watch import Watch
from rlcli.errors import RankError, RankLostError
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.native import NativeSampler
from rlcli.types import Prompt, Rollout

CPU = torch.device("cpu")
PARAMS = SamplingParams(n=3, max_tokens=12)
PROMPTS = [
    Prompt(id=str(i), messages=(), token_ids=tuple(range(3, 4 + i * 5 % 17)), ground_truth=i)
    for i in range(7)
]


def make_sampler(model: Path) -> NativeSampler:
    lm = load_causal_lm(str(model), dtype=torch.float32, device=CPU)
    return NativeSampler(
        lm,
        load_tokenizer(str(model)),
        eos_token_ids=(2, 7, 9, 11),
        pad_token_id=0,
        max_rows=6,
        shares_weights=True,
    )


@contextmanager
def crew_of(model: Path, log: Path, size: int, engine: Any = None) -> Iterator[Crew]:
    """A crew whose other ranks are threads here."""
    pairs = [multiprocessing.Pipe() for _ in range(size - 1)]
    # not in the threads: transformers changes its classes while it loads a model
    samplers = [make_sampler(model) for _ in pairs]

    def serve(rank: int, connection: Connection) -> None:
        with suppress(RankLostError, ValueError):
            algorithm = Algorithm(config(), corrects_sampler=False)
            sampler = samplers[rank - 1]
            follow(connection, engine, sampler, algorithm, seed=(0, rank), log=log)
        connection.close()

    threads = [
        threading.Thread(target=serve, args=(rank, pair[1])) for rank, pair in enumerate(pairs, 1)
    ]
    for thread in threads:
        thread.start()
    crew = Crew([pair[0] for pair in pairs], log)
    try:
        yield crew
    finally:
        crew.dismiss()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("size", [2, 3, 9])
def test_ranks_sample_what_one_would(tiny_model: Path, tmp_path: Path, size: int) -> None:
    """More ranks than prompts too."""
    expected = make_sampler(tiny_model).generate(PROMPTS, PARAMS, seed=4)
    seen: dict[int, Rollout] = {}
    with crew_of(tiny_model, tmp_path / "log", size) as crew:
        sampler = CrewSampler(crew, make_sampler(tiny_model))
        found = sampler.generate(PROMPTS, PARAMS, seed=4, on_finish=seen.__setitem__)
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    assert [r.prompt.id for r in found] == [r.prompt.id for r in expected]
    assert [seen[i] for i in range(len(found))] == found


def test_what_is_drawn_depends_on_the_place_and_not_on_the_neighbours(tiny_model: Path) -> None:
    sampler = make_sampler(tiny_model)
    whole = sampler.generate(PROMPTS, PARAMS, seed=1)
    some = sampler.generate([PROMPTS[5], PROMPTS[2]], PARAMS, seed=1, places=[5, 2])
    assert [r.token_ids for r in some] == [r.token_ids for i in (5, 2) for r in whole[3 * i :][:3]]
    other = sampler.generate([PROMPTS[5]], PARAMS, seed=1, places=[6])
    assert [r.token_ids for r in other] != [r.token_ids for r in some[:3]]


def test_an_error_of_a_rank_is_told_with_its_place(tiny_model: Path, tmp_path: Path) -> None:
    class Broken:
        def annotate(self, *args: Any) -> None:
            raise ValueError("no room left")

    settings = config()
    with crew_of(tiny_model, tmp_path / "log", 2, Broken()) as crew:
        engine = CrewEngine(crew, make_engine(tiny_model, settings))
        algorithm = Algorithm(settings, corrects_sampler=False)
        with pytest.raises(RankError, match=r"rank 1 failed: ValueError: no room left \(test_crew"):
            engine.annotate(make_batch(), algorithm)


def test_a_rank_that_is_gone_is_named(tiny_model: Path, tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    crew = Crew([here], tmp_path / "log")
    there.close()
    with pytest.raises(RankLostError, match="rank 1 is gone") as caught:
        CrewSampler(crew, make_sampler(tiny_model)).generate(PROMPTS, PARAMS, seed=0)
    assert caught.value.exit_code == 70
    crew.dismiss()


def test_a_collective_that_another_rank_left_ends_with_its_cause(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    crew = Crew([here], tmp_path / "log")
    there.close()
    with pytest.raises(RankLostError, match="rank 1"), crew.doing("state"):
        raise RuntimeError("Connection closed by peer")
    crew.dismiss()


def test_who_is_waited_for_is_said_while_it_lasts() -> None:
    (slow, _keep), (quick, answer) = multiprocessing.Pipe(), multiprocessing.Pipe()
    watch = Watch({1: slow, 2: quick}, first_word_s=0.05)
    told: list[str] = []
    watch.tell = told.append
    watch.begin("update")
    time.sleep(0.2)
    assert not told  # nobody is done yet
    answer.send_bytes(b"done")
    watch.done(0)
    until = time.monotonic() + 5
    while not told and time.monotonic() < until:
        time.sleep(0.01)
    watch.close()
    assert told[0].startswith("rank 1 in update for 0 s, others waiting")
