"""LiveCodeBench's tests: one object each, for programs and for functions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlcli.rewards.rules import reference_problem
from rlcli.rewards.rules.code import compute_score
from rlcli.rewards.sandbox import Sandbox

PROGRAM = [
    {"input": "1\n", "output": "2\n", "testtype": "stdin"},
    {"input": "4\n", "output": "5\n", "testtype": "stdin"},
]
FUNCTION = [{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]
METHOD = "class Solution:\n    def shift(self, xs, n):\n        return [x + n for x in xs]"
TWO = METHOD + "\n    def other(self, xs, n):\n        return xs"


@pytest.mark.parametrize("form", [list, json.dumps])
def test_records_of_input_and_output_are_run(box: Sandbox, form: Any) -> None:
    def score(response: str, gold: Any, **extra_info: Any) -> float:
        return compute_score("code", response, form(gold), extra_info, sandbox=box)

    assert score("print(int(input()) + 1)", PROGRAM) == 1.0
    assert score("print(2)", PROGRAM) == 0.0
    assert score(METHOD, FUNCTION) == 1.0
    assert score(METHOD.replace("+", "-"), FUNCTION) == 0.0
    assert score(TWO, FUNCTION) == 0.0
    assert score(TWO, FUNCTION, metadata=json.dumps({"func_name": "shift"})) == 1.0
    assert score(TWO, FUNCTION, metadata={"func_name": "other"}) == 0.0
    assert score(TWO, FUNCTION, starter_code="class Solution:\n    def shift(self, xs):") == 1.0
    assert score("def shift(xs, n): return [x + n for x in xs]", FUNCTION, fn_name="shift") == 1.0


def test_records_that_cannot_be_run_are_named() -> None:
    assert reference_problem("code", PROGRAM) is None
    assert reference_problem("code", json.dumps(FUNCTION)) is None
    assert "expected input and output" in str(reference_problem("code", [{"input": "1"}]))
    mixed = reference_problem("code", [*PROGRAM, *FUNCTION])
    assert "functional, stdin" in str(mixed)
