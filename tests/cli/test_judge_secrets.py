"""Where a judge's key must never be: files, output, arguments, environments of what a run starts.

And what a killed run leaves to the one that goes on.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from judge_server import ENDLESS_S, Act, Call, JudgeServer
from small_runs import in_children

from rlcli.cli.main import main

pytest.importorskip("openai", reason="install the judge extra: pip install -e '.[judge]'")

CANARY = "sk-canary-4711-0815"
ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "train", "--preset", "quickstart", "--use_api_reward", "--output_dir", "run", "data.val=[]",
    "--batch_size", "4", "rollout.n=2", "--save_every", "1",
]  # fmt: skip
ECHO = {"error": {"message": f"the key {CANARY} is fine, the weather is not"}}
REWARD = """\
import os

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    print(sorted(os.environ.values()), flush=True)
    return 1.0
"""
BREAKING = """\
from rlcli.rewards.judge import scorer

reward_of, calls = scorer.reward_of, []

def breaks(*arguments, **more):
    calls.append(1)
    if len(calls) > 12:
        raise ValueError("a bug of ours")
    return reward_of(*arguments, **more)

scorer.reward_of = breaks
"""
RUN = "from rlcli.cli.main import main; main()"


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer(lambda call: Act())
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DASHSCOPE_API_KEY", CANARY)
    return tmp_path


def train(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*WORDS, *words])
    return int(ended.value.code or 0)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A run in a process of its own, judged by whoever is at the address among `words`."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    env = {"OMP_NUM_THREADS": "1"} | dict(os.environ) | {"PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *WORDS, *words],
        cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def holds_key(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if b"sk-canary" in path.read_bytes()]


def seen_of(process: psutil.Process) -> Iterator[tuple[str, bool]]:
    """(arguments, or environment of what was started; whether it is a scoring process)."""
    try:
        for child in process.children(recursive=True):
            arguments = " ".join(child.cmdline())
            if arguments == " ".join(process.cmdline()):
                continue  # still a copy of the run: it becomes what is started in a moment
            is_worker = "rlcli.rewards.worker" in arguments
            yield arguments, False
            yield " ".join(child.environ().values()), is_worker
        yield " ".join(process.cmdline()), False
    except psutil.Error:
        return


def test_a_key_is_nowhere_in_a_run_that_breaks(
    folder: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that repeats it in errors and verdicts, a worker, a bug, a traceback."""

    def behave(call: Call) -> Act:
        if call.attempt == 1 and len(judge.calls) % 4 == 0:
            return Act(status=500, error=ECHO, latency_s=0.02)
        if call.attempt == 1 and len(judge.calls) % 4 == 1:
            return Act(text=f"no score, but {CANARY}")
        return Act(text=f'{{"reason": "you sent {CANARY}", "score": 8}}', model=CANARY)

    judge.behave = behave
    (folder / "reward.py").write_text(REWARD)
    mixed = ["--reward", "reward.py", "reward.composite=true", "--rm_base_url", judge.url,
             "reward.weights={judge: 0.5, rule_score: 0.5}", "--max_steps", "9"]  # fmt: skip
    in_children(folder, monkeypatch, BREAKING)
    run = start(folder, *mixed)
    process = psutil.Process(run.pid)
    seen: set[tuple[str, bool]] = set()
    while run.poll() is None:
        seen.update(seen_of(process))
        time.sleep(0.02)
    out, err = run.communicate()
    assert run.returncode == 1, err
    assert "Traceback" in err
    assert "a bug of ours" in err
    assert any(is_worker for _, is_worker in seen)
    assert not [text for text, _ in seen if "sk-canary" in text]
    assert "sk-canary" not in out + err
    assert str(ROOT) in (folder / "run/reward.log").read_text()  # its environment, told
    assert b"you sent ***" in b"".join(
        path.read_bytes() for path in (folder / "run").glob("judge_cache.sqlite*")
    )
    assert not holds_key(folder)


@pytest.mark.parametrize("status", [401, 403, 404, 400])
def test_a_refused_key_that_the_server_repeats_is_not_shown(
    status: int, folder: Path, judge: JudgeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    judge.behave = lambda call: Act(status=status, error=ECHO)
    assert train("--rm_base_url", judge.url) == 2
    out, err = capfd.readouterr()
    assert "is fine, the weather is not" in err
    assert "sk-canary" not in out + err
    assert not holds_key(folder)


def test_a_key_that_is_refused_later_and_repeated_is_not_kept(
    folder: Path, judge: JudgeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    judge.behave = lambda call: (
        Act() if len(judge.calls) < 14 else Act(status=401, error=ECHO, latency_s=0.01)
    )
    assert train("--rm_base_url", judge.url, "--max_steps", "4") == 75
    out, err = capfd.readouterr()
    assert "is fine, the weather is not" in err
    assert "sk-canary" not in out + err
    assert "***" in (folder / "run/status.json").read_text()
    assert not holds_key(folder)


def question(call: Call) -> str:
    """What was asked, without the random suffix of the tags."""
    return re.sub(r"-[0-9a-f]{16}>", ">", call.user)


def test_a_killed_run_that_goes_on_pays_no_verdict_twice(folder: Path, judge: JudgeServer) -> None:
    """It is killed in its second step, while one call has no answer yet."""
    words = ["--rm_base_url", judge.url, "--max_steps", "3", "reward.judge.canary_every=0"]
    has_step = (folder / "run/checkpoints/step_1").is_dir
    hung: list[str] = []

    def behave(call: Call) -> Act:
        if not has_step() or hung:
            return Act()
        hung.append(question(call))
        return Act(latency_s=ENDLESS_S)

    judge.behave = behave
    run = start(folder, *words)
    deadline = time.monotonic() + 120
    # of the calls, one has no answer, and one was a probe
    while not hung or num_kept(folder) < len(judge.calls) - 2:
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.02)
    before = len(judge.calls)
    started = psutil.Process(run.pid).children(recursive=True)
    assert any("rlcli.rewards.judge.process_worker" in " ".join(one.cmdline()) for one in started)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert not psutil.wait_procs(started, timeout=60)[1]
    spent = spent_of(folder)
    judge.behave = lambda call: Act()
    assert train(*words, "--resume", "auto") == 0
    asked = Counter(question(call) for call in judge.calls)
    assert {text for text, count in asked.items() if count > 1} <= {hung[0], asked_first(judge)}
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    steps: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert sum(step["judge/cache_hits"] for step in steps) > 0
    assert len(judge.calls) > before
    # qwen-plus: 100 in and 20 out; two of the calls were probes
    billed = (len(judge.calls) - 2) * (100 * 0.115e-6 + 20 * 0.287e-6)
    # the hung call, which nobody knows the price of, counts at the most it can cost
    assert billed < spent_of(folder) < billed + 0.0015
    assert spent < spent_of(folder)
    assert not holds_key(folder)


def num_kept(folder: Path) -> int:
    """Verdicts in the run's cache."""
    with closing(sqlite3.connect(folder / "run/judge_cache.sqlite", timeout=60)) as connection:
        return connection.execute("SELECT count(*) FROM verdicts").fetchone()[0]


def spent_of(folder: Path) -> float:
    return float((folder / "run/judge_spent.txt").read_text())


def asked_first(judge: JudgeServer) -> str:
    """The probe: every start asks it."""
    return question(judge.calls[0])
