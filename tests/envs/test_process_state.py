"""What episodes share a process for: random generators, event loops, its pipe; and the sandbox."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlcli.data.readers import Row
from rlcli.data.sets import hold_out, row_key
from rlcli.envs.calls import ToolCall
from rlcli.envs.episode import Episode, EpisodeFailedError
from rlcli.envs.process import EnvClosedError, EnvPool, EnvSpec
from rlcli.envs.tasks import begun_rows, describe_environment, own_rows
from rlcli.errors import ConfigError
from rlcli.rewards.sandbox import NoSandbox, find_sandbox

GLOBAL_RANDOM = '''\
import random, threading
import numpy as np

class Draw:
    """Draws from the process's generators, in every call."""

    def reset(self, task, seed):
        return f"{random.random()} {np.random.rand()}"

    def step(self, reply):
        return f"{random.randrange(10**9)} {np.random.randint(10**9)}"
'''
ASYNC = '''\
import asyncio

class Session:
    """A session that is opened in reset and used in step; it belongs to its event loop."""

    async def reset(self, task, seed):
        self.queue = asyncio.Queue()
        self.server = asyncio.create_task(self.serve())
        return "begin"

    async def serve(self):
        while True:
            text, future = await self.queue.get()
            future.set_result(text.upper())

    async def step(self, reply):
        future = asyncio.get_running_loop().create_future()
        await self.queue.put((reply.text, future))
        return {"messages": await future, "reward": 1.0}
'''
DAEMON = '''\
import os, subprocess, sys

def leave(how: str) -> str:
    """Leave a process behind that outlives this one, then end this one.

    Args:
        how: fork or shell.
    """
    if how == "fork":
        if os.fork() == 0:
            os.setsid()
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])
    else:
        subprocess.Popen(["setsid", "sleep", "60"], close_fds=False)
    os._exit(3)
'''
BARRIER = '''\
import threading
barrier = threading.Barrier(8)

class Wait:
    """Its reset returns once eight are under way."""

    def reset(self, task, seed):
        barrier.wait(20)
        return "ready"

    def step(self, reply):
        return {"done": True}
'''
ODD = '''\
import os
import numpy as np

class Odd:
    """Does what the reply says."""

    live = []

    def reset(self, task, seed):
        Odd.live.append(self)
        return f"{np.random.sample()} {np.random.ranf()}"

    def step(self, reply):
        if reply.text == "seed":
            np.random.seed(5)
        if reply.text == "raise":
            raise ValueError("odd")
        if reply.text == "count":
            return f"{os.getpid()} {len(Odd.live)}"
        return reply.text if reply.text == "\\ud800" else f"{np.random.sample()}"

    def close(self):
        Odd.live.remove(self)
'''
NEEDS_ROWS = """\
class Needs:
    def reset(self, task, seed):
        return task["question"]

    def step(self, reply):
        return {"done": True}
"""


@contextmanager
def pool_of(tmp_path: Path, text: str, name: str, **values: Any) -> Iterator[EnvPool]:
    file = tmp_path / "env.py"
    file.write_text(text)
    target = f"{file}:{name}" if name else str(file)
    pool = EnvPool(EnvSpec(target=target, is_tools=not name, **values))
    try:
        yield pool
    finally:
        pool.close()


def test_draws_of_an_episode_do_not_depend_on_others_in_its_process(tmp_path: Path) -> None:
    with pool_of(tmp_path, GLOBAL_RANDOM, "Draw") as pool:

        def play(number: int, seed: int, others: int) -> list[str]:
            one = Episode(pool, number, {}, seed=seed, form="steps")
            beside = [Episode(pool, 100 + i, {}, seed=i, form="steps") for i in range(others)]
            seen = [one.begin()[0]["content"]]
            for each in beside:
                each.begin()
            for _ in range(3):
                for each in beside:
                    each.step("x", (), is_truncated=False)
                seen.append(one.step("x", (), is_truncated=False).messages[0]["content"])
            for each in [one, *beside]:
                each.close()
            return seen

        alone = play(0, 7, others=0)
        assert play(1, 7, others=5) == alone
        assert play(2, 8, others=0) != alone
        assert len(set(alone)) == 4


def odd_step(one: Episode, text: str) -> str:
    return one.step(text, (), is_truncated=False).messages[0]["content"]


def test_numpys_functions_around_its_generator_draw_from_the_episodes_state(
    tmp_path: Path,
) -> None:
    with pool_of(tmp_path, ODD, "Odd") as pool:
        first, same, other = (
            Episode(pool, number, {}, seed=seed, form="steps")
            for number, seed in enumerate((1, 1, 2))
        )
        assert first.begin() == same.begin() != other.begin()
        odd_step(other, "seed")
        assert odd_step(first, "") == odd_step(same, "")
        assert odd_step(first, "seed") == odd_step(same, "seed") != odd_step(other, "")


def test_half_a_surrogate_pair_in_a_reply_ends_no_process(tmp_path: Path) -> None:
    with pool_of(tmp_path, ODD, "Odd") as pool:
        one = Episode(pool, 0, {}, seed=1, form="steps")
        one.begin()
        assert odd_step(one, "\ud800") == "?"
        assert pool.num_deaths == 0


def test_an_environment_that_raised_is_closed_in_its_process(tmp_path: Path) -> None:
    with pool_of(tmp_path, ODD, "Odd") as pool:
        one, beside = (Episode(pool, number, {}, seed=1, form="steps") for number in range(2))
        one.begin()
        beside.begin()
        before = odd_step(beside, "count")
        with pytest.raises(EpisodeFailedError, match="odd"):
            odd_step(one, "raise")
        process, live = before.split()
        assert odd_step(beside, "count") == f"{process} {int(live) - 1}"


def test_nothing_is_started_once_the_environments_are_closed(tmp_path: Path) -> None:
    with pool_of(tmp_path, ODD, "Odd") as pool:
        one = Episode(pool, 0, {}, seed=1, form="steps")
        one.begin()
        pool.close()
        with pytest.raises(EpisodeFailedError, match="closed"):
            odd_step(one, "")
        with pytest.raises(EnvClosedError):
            pool.private()


def test_a_session_of_an_async_environment_lives_over_several_calls(tmp_path: Path) -> None:
    with pool_of(tmp_path, ASYNC, "Session", timeout_s=20.0) as pool:
        episodes = [Episode(pool, i, {}, seed=i, form="steps") for i in range(2)]
        for each in episodes:
            each.begin()
        for text in ("a", "b"):
            for each in episodes:
                reply = each.step(text, (), is_truncated=False)
                assert reply.messages[0]["content"] == text.upper()
        for each in episodes:
            each.close()


@pytest.mark.parametrize("how", ["fork", "shell"])
def test_a_process_that_a_tool_leaves_behind_does_not_hide_the_end_of_its_own(
    tmp_path: Path, how: str
) -> None:
    with pool_of(tmp_path, DAEMON, "", timeout_s=50.0) as pool:
        one = Episode(pool, 0, {}, seed=0, form="functions")
        begun = time.monotonic()
        with pytest.raises(EpisodeFailedError, match="status 3"):
            one.call([ToolCall(name="leave", arguments={"how": how})])
        assert time.monotonic() - begun < 50


def test_rows_are_begun_side_by_side(tmp_path: Path) -> None:
    """One after the other, none would ever begin."""
    (tmp_path / "env.py").write_text(BARRIER)
    spec = EnvSpec(target=f"{tmp_path / 'env.py'}:Wait", timeout_s=25.0)
    made = own_rows(spec, describe_environment(spec), num_train=8, num_val=0, seed=0)
    assert [row.prompt for row in made.train] == [({"role": "user", "content": "ready"},)] * 8


def test_a_row_that_cannot_be_begun_is_named(tmp_path: Path) -> None:
    (tmp_path / "env.py").write_text(NEEDS_ROWS)
    spec = EnvSpec(target=f"{tmp_path / 'env.py'}:Needs")
    rows = [Row(id="a.jsonl:1", prompt="", columns={"question": "why?"})]
    (begun,) = begun_rows(spec, rows, seed=0)
    assert begun.prompt[-1]["content"] == "why?"  # type: ignore[index]
    bad = Row(id="a.jsonl:2", prompt="", columns={"q": 1})
    with pytest.raises(ConfigError, match=r"a\.jsonl:2"):
        begun_rows(spec, [*rows, bad], seed=0)


@pytest.mark.parametrize("prompt", ["None", "[{'role': 'user'}]", "7"])
def test_a_task_with_a_prompt_that_cannot_be_shown_is_refused(tmp_path: Path, prompt: str) -> None:
    tasks = f"    def task(self, index, seed):\n        return {{'prompt': {prompt}}}\n"
    (tmp_path / "env.py").write_text(NEEDS_ROWS + tasks)
    spec = EnvSpec(target=f"{tmp_path / 'env.py'}:Needs")
    with pytest.raises(ConfigError, match="prompt"):
        own_rows(spec, describe_environment(spec), num_train=2, num_val=0, seed=0)


def test_rows_with_one_prompt_are_different_tasks_of_an_environment() -> None:
    rows = [Row(id=str(i), prompt="Guess.", columns={"goal": i}) for i in range(400)]
    assert hold_out(rows).held_out == []
    split = hold_out(rows, key=row_key)
    assert len(split.held_out) == 20
    assert len(split.train) == 380


def test_the_worker_imports_the_standard_library_alone() -> None:
    code = (
        "import sys, rlcli.envs.worker, rlcli.envs.loading\n"
        "names = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names\n"
        "print(sorted(name for name in names if name not in ('rlcli', 'site', 'sitecustomize')\n"
        "             and getattr(sys.modules[name], '__file__', None)))"
    )
    root = str(Path(__file__).resolve().parents[2])
    answer = subprocess.run(
        [sys.executable, "-S", "-P", "-c", f"import sys; sys.path.append({root!r})\n{code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer.stdout.strip() == "[]"


def test_the_tool_python_runs_programs_in_the_sandbox(tmp_path: Path) -> None:
    try:
        find_sandbox()
    except NoSandbox as error:
        pytest.skip(str(error))
    (tmp_path / "more.py").write_text(
        'def add(a: int) -> int:\n    """Add.\n\n    Args:\n        a: A number.\n    """\n'
        "    return a + 1\n"
    )
    spec = EnvSpec(target=f"python,{tmp_path / 'more.py'}", is_tools=True)
    facts = describe_environment(spec)
    assert [each["function"]["name"] for each in facts.schemas] == ["python", "add"]
    pool = EnvPool(spec)
    try:
        one = Episode(pool, 0, {}, seed=0, form="functions")

        def run(code: str) -> str:
            call = ToolCall(name="python", arguments={"code": code})
            return one.call([call]).messages[0]["content"]

        assert run("print(6 * 7)") == "42"
        assert run("1 / 0").endswith("ZeroDivisionError: division by zero")
        assert "FileNotFoundError" in run(f"print(open({str(tmp_path / 'more.py')!r}).read())")
        assert "unreachable" in run("import socket; socket.create_connection(('1.1.1.1', 80), 1)")
        assert len(run("print('x' * 10**6)")) < 50_000
    finally:
        pool.close()


def test_the_tool_python_is_refused_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    spec = EnvSpec(target="python", is_tools=True)
    with pytest.raises(ConfigError, match="apt-get install bubblewrap"):
        describe_environment(spec)
