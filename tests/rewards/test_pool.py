"""Real functions that hang, crash, raise and return nonsense, in real processes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import wait_until

from rlcli.data.boxed_answers import gold_box
from rlcli.rewards.base import score_all
from rlcli.rewards.function_check import check_function
from rlcli.rewards.process_pool import ScorerPool, read_reply
from rlcli.types import Reward

MISCHIEF = """
import ctypes, os, re, sys, time, threading

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    print("noise on stdout " * 1000)
    os.write(1, b"and on its descriptor")
    if solution_str == "hang":
        time.sleep(1000)
    if solution_str == "hang holding the lock":
        re.match(r"(a+)+b", "a" * 60)
    if solution_str == "exit":
        os._exit(3)
    if solution_str == "leave":
        sys.exit("bye")
    if solution_str == "segfault":
        ctypes.string_at(0)
    if solution_str == "raise":
        raise KeyError("no such thing")
    if solution_str == "recurse":
        return compute_score(data_source, solution_str, ground_truth)
    if solution_str == "return":
        return extra_info["value"]
    return 0.5
"""


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("hang", "took longer than 1 s (reward.timeout_s)"),
        ("hang holding the lock", "took longer than 1 s (reward.timeout_s)"),
        ("exit", "the scoring process exited with status 3"),
        ("segfault", "the scoring process was killed by SIGSEGV"),
        ("leave", "SystemExit: bye (reward.py:14)"),
        ("raise", "KeyError: 'no such thing' (reward.py:18)"),
        ("recurse", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_a_failing_call_is_unscored_with_its_reason_and_the_next_one_is_scored(
    user_file: Any, pool: Any, rollout: Any, text: str, error: str
) -> None:
    scorer = pool(user_file(MISCHIEF))
    assert score_all(scorer, [rollout("fine")])[0].value == 0.5
    if text.startswith("hang"):
        hurry(scorer)
    failed, fine = score_all(scorer, [rollout(text), rollout("fine")])
    assert (failed.value, fine.value) == (None, 0.5)
    assert failed.error.startswith(error)


def hurry(scorer: ScorerPool) -> None:
    """Give the next call to the process that is there 1 s, and none to another."""
    process = scorer._lanes[0]._process
    assert process is not None
    process._timeout_s = 1.0


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), "the reward is nan, expected a finite number"),
        (float("-inf"), "the reward is -inf, expected a finite number"),
        (1j, "the reward returned complex 1j, expected a number"),
        (Decimal("nan"), "the reward is nan, expected a finite number"),
        ([1.0], "the reward returned list [1.0], expected a number"),
        (None, "the reward returned NoneType None, expected a number"),
        ("1.0", "the reward returned str '1.0', expected a number"),
        (10**400, "OverflowError: int too large to convert to float"),
        ({"score": "1.0"}, "'score' is str '1.0', expected a number"),
        ({"score": 1.0, "form": float("inf")}, "form is inf, expected a finite number"),
        ({}, "the reward returned a dict without numbers"),
    ],
)
def test_what_is_no_number_is_unscored(
    user_file: Any, pool: Any, rollout: Any, value: Any, error: str
) -> None:
    scorer = pool(user_file(MISCHIEF))
    (reward,) = score_all(scorer, [rollout("return", value=value)])
    assert reward.value is None
    assert reward.error.startswith(error)


@pytest.mark.parametrize(
    "value", [1, 1.0, True, Fraction(1), Decimal("1.0"), {"score": 1}, {"score": True}]
)
def test_numbers_and_dicts_are_scores(user_file: Any, pool: Any, rollout: Any, value: Any) -> None:
    assert score_all(pool(user_file(MISCHIEF)), [rollout("return", value=value)])[0] == Reward(
        value=1.0
    )


def test_numbers_of_numpy_and_torch_are_scores(user_file: Any, pool: Any, rollout: Any) -> None:
    source = """
import numpy, torch
def compute_score(data_source, solution_str, ground_truth):
    return {
        "scalar": numpy.float32(0.5), "0-d": numpy.array(0.5), "1-d": numpy.array([0.5]),
        "bfloat16": torch.tensor(0.5).bfloat16(), "grad": torch.tensor(0.5, requires_grad=True),
        "right": numpy.bool_(True), "wrong": torch.tensor(False), "many": torch.ones(2),
    }[solution_str]
"""
    scorer = pool(user_file(source))
    names = ("scalar", "0-d", "1-d", "bfloat16", "grad", "right", "wrong", "many")
    rewards = score_all(scorer, [rollout(text) for text in names])
    assert [reward.value for reward in rewards] == [0.5] * 5 + [1.0, 0.0, None]


def test_parts_are_the_other_numbers_of_a_dict(user_file: Any, pool: Any, rollout: Any) -> None:
    result = {"score": 1.0, "form": 0.5, "right": True, "read": "42"}
    scorer = pool(user_file(MISCHIEF))
    assert score_all(scorer, [rollout("return", value=result)]) == [
        Reward(value=1.0, parts={"form": 0.5, "right": 1.0})
    ]


@pytest.mark.parametrize(
    ("result", "score"),
    [
        ({"reward": 0.5, "acc": True, "pred": "42"}, 0.5),
        ({"accuracy": True, "pred": "42"}, 1.0),
        ({"score": 0.25, "reward": 0.5}, 0.25),
        ({"acc": 1.0, "form": 0.5}, None),
        ({"score": None, "reward": 1.0}, None),
    ],
)
def test_a_dict_without_score_counts_when_only_one_number_can_be_meant(
    result: Any, score: float | None, user_file: Any, pool: Any, rollout: Any
) -> None:
    (reward,) = score_all(pool(user_file(MISCHIEF)), [rollout("return", value=result)])
    assert reward.value == score
    assert score is not None or "score" in (reward.error or "")


def test_weights_sum_the_parts_and_a_missing_one_leaves_the_rollout_unscored() -> None:
    weights = {"right": 1.0, "form": 0.2}
    reply = {"score": None, "parts": {"right": 0.5, "form": 1.0, "length": 9.0}}
    assert read_reply(reply, weights=weights) == Reward(
        value=0.7, parts={"right": 0.5, "form": 1.0, "length": 9.0}
    )
    partial = read_reply({"score": 3.0, "parts": {"right": 0.5}}, weights=weights)
    assert partial.value is None
    assert partial.error == "reward.weights names form; the reward returned right, score"
    own = read_reply({"score": 3.0, "parts": {}}, weights={"score": 2.0})
    assert own == Reward(value=6.0, parts={"score": 3.0})
    assert read_reply({"score": None, "parts": {"right": 0.5}}, weights={}).value is None


def test_the_function_sees_the_row_and_may_do_without_extra_info(
    user_file: Any, pool: Any, rollout: Any
) -> None:
    source = """
def compute_score(data_source, solution_str, ground_truth):
    return float((data_source, solution_str, ground_truth) == ("mine", "text", ["a", 1]))
"""
    (reward,) = score_all(pool(user_file(source)), [rollout("text", ["a", 1], "mine")])
    assert reward.value == 1.0


def test_keys_are_not_in_the_environment_and_the_error_says_why(
    user_file: Any, pool: Any, rollout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DASHSCOPE_API_KEY", "HF_TOKEN", "CANARY_SECRET"):
        monkeypatch.setenv(name, "canary-value")
    monkeypatch.setenv("HARMLESS", "1")
    source = """
import os
def compute_score(data_source, solution_str, ground_truth):
    if solution_str == "ask":
        return os.environ["DASHSCOPE_API_KEY"]
    seen = open("/proc/self/environ").read() + repr(dict(os.environ))
    return float("canary-value" not in seen and "HARMLESS" in seen)
"""
    safe, asked = score_all(pool(user_file(source)), [rollout("look"), rollout("ask")])
    assert safe.value == 1.0
    assert "keys are kept from reward functions" in str(asked.error)


def test_the_clock_starts_when_the_work_starts(
    user_file: Any, pool: Any, rollout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two looks at the clock 40 s go by, more than half of what a call may take."""
    clock = SimpleNamespace(monotonic=partial(next, itertools.count(0.0, 40.0)))
    monkeypatch.setattr("rlcli.rewards.process.time", clock)
    rewards = score_all(pool(user_file(MISCHIEF), timeout_s=60.0), [rollout("fine")] * 5)
    assert [reward.value for reward in rewards] == [0.5] * 5


def test_scoring_goes_on_while_rollouts_still_come(user_file: Any, pool: Any, rollout: Any) -> None:
    scorer = pool(user_file(MISCHIEF), workers=2, timeout_s=1000.0)
    slow = scorer.submit(rollout("hang"))
    assert scorer.submit(rollout("fine")).result(timeout=60).value == 0.5
    assert not slow.done()
    scorer.close()
    assert slow.result(timeout=60).value is None


def test_functions_find_the_modules_beside_them(user_file: Any, pool: Any, rollout: Any) -> None:
    user_file("def grade(text): return len(text)", "my_grading.py")
    source = """
from my_grading import grade
def compute_score(data_source, solution_str, ground_truth):
    return grade(solution_str)
"""
    assert score_all(pool(user_file(source)), [rollout("abc")])[0].value == 3.0


def test_what_functions_print_goes_to_the_log(
    user_file: Any, pool: Any, rollout: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "reward.log"
    score_all(pool(user_file(MISCHIEF), log=log), [rollout("fine")])
    assert b"and on its descriptor" in log.read_bytes()
    assert capfd.readouterr().out == ""


def test_close_kills_what_hangs_and_cancels_what_waits(
    user_file: Any, pool: Any, rollout: Any
) -> None:
    scorer = pool(user_file(MISCHIEF), timeout_s=1000.0)
    score_all(scorer, [rollout("fine")])
    running, waiting = scorer.submit(rollout("hang")), scorer.submit(rollout("fine"))
    while not running.running():
        time.sleep(0.01)
    begun = time.perf_counter()
    scorer.close()
    assert time.perf_counter() - begun < 100.0
    assert running.result(timeout=60).value is None
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        scorer.submit(rollout("fine"))


PARENT = """
import sys, time
from rlcli.rewards.process_pool import ScorerPool
from rlcli.types import Prompt, Rollout
prompt = Prompt(id="a", messages=(), token_ids=(1,), data_source="x")
hang = Rollout(prompt=prompt, text="hang", token_ids=(1,), logprobs=(0.0,), finish_reason="stop",
               policy_version=0)
pool = ScorerPool(sys.argv[1], workers=2, timeout_s=1000)
pool.submit(hang)
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_processes_die_with_a_killed_parent_even_while_they_hang(
    user_file: Any, tmp_path: Path
) -> None:
    source = f"""
import os, pathlib, time
pathlib.Path({str(tmp_path)!r}, f"{{os.getpid()}}.pid").touch()
def compute_score(data_source, solution_str, ground_truth):
    pathlib.Path({str(tmp_path)!r}, "hanging").touch()
    time.sleep(1000)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PARENT, user_file(source)]
    with subprocess.Popen(command, env=environment) as parent:
        wait_until(lambda: (tmp_path / "hanging").exists() and len(pids(tmp_path)) == 2)
        parent.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids(tmp_path)))


def pids(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.pid")]


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_rules_score_real_rows_in_two_processes_without_waiting_for_each_other(
    pool: Any, rollout: Any, shared_data: Path
) -> None:
    lines = (shared_data / "math_test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["solution"] for line in lines[:200]]
    scorer = pool("rules", workers=2)
    rollouts = [rollout(text, gold_box(text), "lighteval/MATH") for text in texts]
    score_all(scorer, rollouts[:2])
    assert all(reward.value == 1.0 for reward in score_all(scorer, rollouts * 2))


def test_an_answer_that_never_ends_to_compute_is_unscored(pool: Any, rollout: Any) -> None:
    scorer = pool("rules")
    quick = rollout(r"\boxed{7}", "7", "math")
    endless = rollout(r"\boxed{(a+b+c+d)^{300}}", "a+(b+c+d)^{300}", "math")
    assert score_all(scorer, [quick])[0].value == 1.0
    hurry(scorer)
    late, again = score_all(scorer, [endless, quick])
    assert (late.value, again.value) == (None, 1.0)
    assert "took longer than 1 s" in late.error


def test_a_row_that_a_rule_cannot_grade_is_unscored_with_the_reason(
    pool: Any, rollout: Any
) -> None:
    unknown, bad_gold = score_all(
        pool("rules"), [rollout("1", "1", "gsm9k"), rollout("1", "one", "gsm8k")]
    )
    assert unknown.value is None
    assert "no built-in rule grades data_source 'gsm9k' (nearest: gsm8k" in unknown.error
    assert bad_gold.value is None
    assert bad_gold.error == "ground_truth 'one' is not a number"
    assert unknown.is_undecided
    assert bad_gold.is_undecided


def test_scoring_works_under_a_parent_with_torch_threads(
    user_file: Any, pool: Any, rollout: Any
) -> None:
    import torch

    torch.randn(400, 400) @ torch.randn(400, 400)
    source = """
import sys
def compute_score(data_source, solution_str, ground_truth):
    return float("torch" not in sys.modules and "pytest" not in sys.modules)
"""
    assert score_all(pool(user_file(source)), [rollout("x")])[0].value == 1.0


def test_a_function_that_can_be_called_passes_the_check(user_file: Any) -> None:
    check_function(user_file(MISCHIEF))
