"""Three real ranks: who is waited for is said while it lasts, and nobody waits for ever."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZE = 3
RANK = """
import os, signal, sys, threading, time, torch
import torch.distributed as dist
from dataclasses import dataclass
from datetime import timedelta
from torch.distributed.distributed_c10d import _set_pg_timeout
from rlcli.crew.follow import follow
from rlcli.crew.lead import Crew, CrewEngine, CrewSampler
from rlcli.crew.meet import connect, process_group
from rlcli.place import read_place
from rlcli.rollout.base import SamplingParams
from rlcli.types import Prompt

place = read_place(os.environ)
BEAT_S, FIRST_WORD_S, PATIENCE_S = 0.1, 1.0, 1.5
CASES = {
    "short": [{}],
    "even": [{0: 0.1, 1: 0.1, 2: 0.1}] * 14,
    "rank 1": [{1: 0.2}, {1: 1.9}, {2: 0.1}],
    "rank 0": [{}, {0: 1.9}],
    "stopped": [{2: 0.4}],
    "broken": [{1: 0.3}, {1: "no room left"}],
}

class Engine:
    def load_state(self, parts):
        for part in parts:
            work = part.get(place.rank, 0)
            if isinstance(work, str):
                raise ValueError(work)
            time.sleep(work)
            total = torch.tensor(float(place.rank))
            dist.all_reduce(total)
            assert total == 3

class Sampler:
    # rank 1 is slow at first, and rank 2 is stopped for good the second time
    is_exact = True

    def generate(self, prompts, params, *, seed, places, on_finish):
        if (seed, place.rank) == (0, 1):
            time.sleep(PATIENCE_S + 0.5)
        if (seed, place.rank) == (1, 2):
            os.kill(os.getpid(), signal.SIGSTOP)
        for i, prompt in enumerate(prompts):
            on_finish(i, Rollout(prompt))

@dataclass
class Rollout:
    prompt: object

def lose(connections):
    limits = {"first_word_s": FIRST_WORD_S, "beat_s": BEAT_S, "patience_s": PATIENCE_S}
    crew = Crew(connections, place.log, **limits)
    sampler, engine = CrewSampler(crew, Sampler()), CrewEngine(crew, Engine())
    prompts = [Prompt(id=str(i), messages=(), token_ids=(3,), ground_truth=i) for i in range(3)]
    share = lambda seed: sampler.generate(prompts, SamplingParams(n=1, max_tokens=1), seed=seed)
    cases = {
        "slow": lambda: share(0),
        "generate": lambda: share(1),
        "torn": lambda: engine.load_state([{}]),
    }
    for case, work in cases.items():
        begun = time.monotonic()
        try:
            work()
            print(f"{case}: ended", flush=True)
        except Exception as error:
            told = f"{type(error).__name__}: {error}, {time.monotonic() - begun:.0f} s"
            print(f"{case}: {told}", flush=True)

def lead(connections, pids):
    crew = Crew(connections, place.log, first_word_s=FIRST_WORD_S, beat_s=BEAT_S)
    engine, case = CrewEngine(crew, Engine()), ""

    def tell(note):
        print(f"{case}: {note}", flush=True)
        if "silent" in note:
            os.kill(pids[1], signal.SIGCONT)

    crew.watch.tell = tell
    try:
        for case, parts in CASES.items():
            if case == "stopped":
                threading.Timer(0.2, os.kill, (pids[1], signal.SIGSTOP)).start()
            for _ in range(50 if case == "short" else 1):
                engine.load_state(parts)
            print(f"{case}: ended", flush=True)
    except Exception as error:
        print(f"{case}: {error}", flush=True)

with process_group(place, torch.device("cpu"), tell=print):
    connections, pids = connect(place, tell=print), [0] * place.size
    dist.all_gather_object(pids, os.getpid())
    if loses := sys.argv[1:] == ["lose"]:
        _set_pg_timeout(timedelta(seconds=PATIENCE_S))
    try:
        if place.rank == 0 and loses:
            lose(connections)
        elif place.rank == 0:
            lead(connections, pids)
        else:
            more = {"seed": (0, place.rank), "log": place.log, "beat_s": BEAT_S}
            follow(connections[0], Engine(), Sampler(), None, **more)
    finally:
        os._exit(0)
"""
"""By case: what each rank does before each collective, for so many seconds or until it fails."""


def said(folder: Path, *words: str) -> dict[str, list[str]]:
    """What rank 0 says, by case."""
    env = {"WORLD_SIZE": str(SIZE), "LOCAL_WORLD_SIZE": str(SIZE), "RLCLI_RUN_DIR": str(folder)}
    env |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *words],
            env={**os.environ, **env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(SIZE)
    ]
    try:
        output = ranks[0].communicate(timeout=60)[0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        case, _, note = line.partition(": ")
        found.setdefault(case, []).append(note)
    return found


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What rank 0 said while all came through, and of one that failed."""
    return said(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", ["short", "even"])
def test_nothing_is_said_while_all_go_on(case: str, notes: dict[str, list[str]]) -> None:
    """Neither of many short commands nor of one that lasts longer than the first word takes."""
    assert notes[case] == ["ended"], notes


@pytest.mark.parametrize("case", ["rank 0", "rank 1"])
def test_who_is_late_for_a_collective_is_named(case: str, notes: dict[str, list[str]]) -> None:
    """Rank 0 is inside it too, and reads what others say nonetheless."""
    first, *_, last = notes[case]
    assert re.fullmatch(rf"{case} in load_state for [12] s, others waiting", first), notes
    assert last == "ended"


def test_a_stopped_rank_is_named_and_goes_on(notes: dict[str, list[str]]) -> None:
    """It is stopped inside the collective, no less far than the others."""
    first, last = notes["stopped"]
    assert re.fullmatch(r"rank 1 in load_state for [123] s, silent for [12] s", first), notes
    assert last == "ended"


def test_an_error_is_told_though_beats_came_before(notes: dict[str, list[str]]) -> None:
    assert notes["broken"][-1].startswith("rank 1 failed: ValueError: no room left"), notes


def test_a_silent_rank_is_given_up_and_a_slow_one_is_not(tmp_path: Path) -> None:
    """While it samples, and in a collective that ends in torch's own words, some without gloo."""
    notes = said(tmp_path, "lose")
    assert notes["slow"] == ["ended"], notes
    for case, name in (("generate", "generate"), ("torn", "load_state")):
        lost = rf"RankLostError: rank 2 did not answer in {name}, [1-5] s"
        assert re.fullmatch(lost, notes[case][-1]), notes
    stacks = "".join(file.read_text() for file in tmp_path.rglob("*.log"))
    assert "Timeout (0:00:01.2" in stacks
    assert "in generate" in stacks
