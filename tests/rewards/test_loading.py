"""What is said of `reward.fn` before anything else is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.errors import RewardError
from rlcli.rewards.function_check import check_function


def message(fn: str) -> str:
    with pytest.raises(RewardError) as caught:
        check_function(fn)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\ndef compute_score(:\n    pass\n", "reward.py:2: SyntaxError: invalid syntax"),
        (
            "import os\nimport no_such_module\n",
            "reward.py:2: cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("x = 1\n1 / 0\n", "reward.py:2: cannot be loaded: ZeroDivisionError"),
        ("raise SystemExit(3)\n", "reward.py:1: cannot be loaded: SystemExit: 3"),
        ("import os\nos._exit(0)\n", "ends its process while it is loaded"),
        ("def score(): pass\n", "there is no function compute_score; it has: score"),
        ("compute_score = 3\n", "compute_score is a int, expected a function"),
        (
            "\ndef compute_score(a, b): pass\n",
            "reward.py:2: compute_score(a, b) does not take the response",
        ),
        (
            "class compute_score:\n  def __init__(self, x): pass\n",
            "reward.py:1: compute_score is a class that cannot be made without arguments",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_file_and_line(
    user_file: Any, source: str, expected: str
) -> None:
    assert expected in message(user_file(source))


def test_a_wrong_signature_is_told_the_contract(user_file: Any) -> None:
    said = message(user_file("def compute_score(a): pass\n"))
    assert "compute_score(data_source, solution_str, ground_truth, extra_info=None)" in said


@pytest.mark.parametrize(
    "source",
    [
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None): return 1\n",
        "def compute_score(data_source, solution_str, ground_truth): return 1\n",
        "def compute_score(*, data_source, solution_str, ground_truth, **others): return 1\n",
        "class Score:\n  def __call__(self, **row): return 1\ncompute_score = Score()\n",
        "import functools\n@functools.cache\ndef compute_score(**row): return 1\n",
    ],
)
def test_functions_that_take_the_contracts_arguments_are_accepted(
    user_file: Any, source: str
) -> None:
    check_function(user_file(source))


def test_a_file_that_reads_a_key_is_told_that_keys_are_kept_from_it(
    user_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    said = message(user_file("import os\nkey = os.environ['OPENAI_API_KEY']\n"))
    assert "reward.py:2: cannot be loaded: KeyError: 'OPENAI_API_KEY'" in said
    assert "keys are kept from reward functions" in said


def test_a_missing_file_gets_the_names_beside_it(user_file: Any) -> None:
    user_file("x = 1", "rewards.py")
    said = message(user_file("x = 1").replace("reward.py", "rewrd.py"))
    assert "there is no file" in said
    assert "in that folder: reward" in said


def test_neither_rule_nor_function_gets_the_nearest_rule() -> None:
    said = message("gsm8")
    assert "reward.fn=gsm8 is no rule (nearest: gsm8k" in said
    assert "file.py:function" in said


def test_a_module_can_be_named_instead_of_a_file(
    user_file: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    user_file("def grade(**row): return 1", "my_rewards.py")
    monkeypatch.chdir(tmp_path)
    check_function("my_rewards:grade")
    assert "cannot import no_rewards" in message("no_rewards:grade")


def test_the_function_may_be_left_out(user_file: Any) -> None:
    fn = user_file("def compute_score(**row): return 1")
    check_function(fn.removesuffix(":compute_score"))
