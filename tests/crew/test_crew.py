"""Rank 0's hold on the others: rollouts in order, and what it says when one of them fails."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_parts import config, make_engine
from tiny_runs import tiny_run, write_inputs
from waiting import wait_until

import rlcli.session
from rlcli.algos.algorithm import Algorithm
from rlcli.causal_lm import load_causal_lm, load_tokenizer
from rlcli.crew.follow import follow
from rlcli.crew.lead import Crew, CrewEngine, CrewSampler
from rlcli.crew.watch import Watch
from rlcli.crew.words import Inbox
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
        def state(self) -> None:
            raise ValueError("no room left")

    with crew_of(tiny_model, tmp_path / "log", 2, Broken()) as crew:
        engine = CrewEngine(crew, make_engine(tiny_model, config()))
        with pytest.raises(RankError, match=r"rank 1 failed: ValueError: no room left \(test_crew"):
            engine.state()


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


@pytest.mark.parametrize(
    "text",
    [
        "Application timeout caused pair closure",
        "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 2000ms for recv operation "
        "to complete",
        "NCCL communicator was aborted on rank 0.",
    ],
)
def test_a_collective_ends_as_a_lost_rank_where_nobody_is_known_to_be_late(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlcli.crew.lead.LAST_WORDS_S", 0.2)
    here, _there = multiprocessing.Pipe()
    crew = Crew([here], tmp_path / "log")
    why = text.partition("] ")[2] or text.rstrip(".")
    lost = f"^rank 0 lost contact with another: {why}$"
    with pytest.raises(RankLostError, match=lost), crew.doing("state"):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match=r"^a bug$"), crew.doing("state"):
        raise RuntimeError("a bug")
    crew.dismiss()


def test_a_rank_that_lost_contact_is_not_the_one_that_is_named(tmp_path: Path) -> None:
    """It has said so and left; the other fell silent in the midst of it."""
    pairs = [multiprocessing.Pipe() for _ in range(2)]
    crew = Crew([pair[0] for pair in pairs], tmp_path / "log", first_word_s=0.1, beat_s=0.1)

    def state() -> None:
        wait_until(lambda: 2 in crew.watch.late)
        pairs[0][1].send_bytes(pickle.dumps(("lost", "Connection closed by peer")))
        pairs[0][1].close()

    lost = r"^rank 2 did not answer in state$"
    with pytest.raises(RankLostError, match=lost), crew.doing("state"):
        state()
    crew.dismiss()


def test_a_rank_that_stops_in_the_midst_of_a_word_is_given_up(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    crew = Crew([here], tmp_path / "log", patience_s=0.3)
    os.write(there.fileno(), struct.pack("!i", 1000) + b"half")
    with (
        pytest.raises(RankLostError, match=r"^rank 1 did not answer in state$"),
        crew.doing("state"),
    ):
        pass
    crew.dismiss()


def test_a_rank_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    here, _there = multiprocessing.Pipe()
    crew = Crew([here], tmp_path / "log", patience_s=0.3)
    with (
        pytest.raises(RankLostError, match=r"^rank 1 did not answer in state$"),
        crew.doing("state", "x" * 10_000_000),
    ):
        pass
    crew.dismiss()


def test_who_is_waited_for_is_said_while_it_lasts() -> None:
    (slow, _keep), (quick, answer) = multiprocessing.Pipe(), multiprocessing.Pipe()
    watch = Watch({1: Inbox(slow), 2: Inbox(quick)}, first_word_s=0.05, beat_s=2.0)
    told: list[str] = []
    watch.tell = told.append
    watch.begin("update")
    time.sleep(0.5)
    assert not told  # nobody is done yet, and nobody has had to say how far it is
    answer.send_bytes(pickle.dumps(("done",)))
    watch.done(0)
    wait_until(lambda: bool(told))
    watch.close()
    assert re.fullmatch(r"rank 1 in update for \d+ s, others waiting", told[0])


def test_rollouts_come_whole_and_in_order_between_beats(tmp_path: Path) -> None:
    """From two threads, and some of them longer than a pipe holds."""
    here, there = multiprocessing.Pipe()
    reports = [(i, "x" * (i % 7 * 20_000 if i % 50 == 0 else i % 300)) for i in range(2000)]

    class Sampler:
        def generate(self, *_: Any, on_finish: Any, **__: Any) -> None:
            time.sleep(0.01)
            threads = [
                threading.Thread(target=lambda part=part: [on_finish(*r) for r in reports[part::2]])
                for part in (0, 1)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        def close(self) -> None:
            pass

    more: Any = {"seed": (0, 1), "log": tmp_path / "log", "beat_s": 0.0005}
    rank = threading.Thread(target=follow, args=(there, None, Sampler(), None), kwargs=more)
    rank.start()
    crew = Crew([here], tmp_path / "log", first_word_s=0.001, beat_s=0.0005)
    told: list[str] = []
    crew.watch.tell = told.append
    found: list[tuple[int, str]] = []
    for _ in range(2):
        found.clear()
        crew.tell(1, "generate", (), PARAMS, 0, (), True)
        crew.watch.begin("generate", in_step=False)
        crew.hear(1, lambda index, rollout: found.append((index, rollout)))
        crew.watch.end()
        for part in (0, 1):
            assert [row for row in found if row[0] % 2 == part] == reports[part::2]
        assert len(found) == len(reports)
    crew.dismiss()
    rank.join()
    assert not [note for note in told if "others waiting" in note]


def test_what_only_rank_0_does_is_said_while_others_have_nothing_to_do() -> None:
    here, _there = multiprocessing.Pipe()
    watch = Watch({1: Inbox(here)}, first_word_s=0.2)
    told: list[str] = []
    watch.tell = told.append
    watch.lead("reward")
    watch.begin("generate")
    time.sleep(0.5)
    assert not told  # the other rank samples meanwhile
    watch.end()
    begun = time.monotonic()
    wait_until(lambda: bool(told))
    assert time.monotonic() - begun >= 0.2
    assert re.fullmatch(r"rank 0 in reward for \d+ s, others waiting", told[0])
    watch.lead("")
    told.clear()
    time.sleep(0.5)
    assert not told  # between the parts of a step nobody waits long
    watch.close()


def test_a_run_says_when_rank_0_scores_evaluates_and_saves(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, told = rlcli.session.build_run, list[str]()

    def listened(*given: Any, **more: Any) -> Any:
        run = build(*given, **more)
        run.monitor.on_phase = told.append
        return run

    monkeypatch.setattr(rlcli.session, "build_run", listened)
    write_inputs(tmp_path)
    words = [
        "algorithm.name=grpo", f"model.path={tiny_model}", "model.dtype=float32",
        f"data.train={tmp_path}/a.jsonl", f"data.val={tmp_path}/b.jsonl", "run.eval_every=0",
        "data.max_prompt_tokens=40", "data.max_response_tokens=6", "rollout.n=2",
        "train.prompts_per_step=3", "train.mini_batch_prompts=3", "train.max_steps=1",
        f"reward.fn={tmp_path}/reward.py:compute_score", "train.device=cpu",
    ]  # fmt: skip
    tiny_run(tmp_path, "run", words)
    parts = ["evaluation", "reward", "evaluation", "saving", "saving"]
    assert told == [word for part in parts for word in (part, "")]
