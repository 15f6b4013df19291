"""Replies of environments and calls of models in every form they may have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rlcli.envs.calls import ToolCall, parse_pythonic, problem_of, read_calls
from rlcli.envs.replies import read_messages, read_step, to_json


@pytest.mark.parametrize(
    "text", ["[look(k=...)]", "[look(k=b'1')]", "[look(k={1})]", "[look(k=1j)]", "[f(k={[]: 1})]"]
)
def test_values_that_json_lacks_are_failed_calls(text: str) -> None:
    found = parse_pythonic(text)
    assert not found.calls
    assert len(found.failures) == 1


@pytest.mark.parametrize(
    ("given", "reward", "done"),
    [
        (("obs", np.float32(1), np.bool_(True), np.bool_(False), {}), 1.0, True),
        (("obs", 0.5, 0, 1, {}), 0.5, True),
        (("obs", 0.5, False, {"done": True}), 0.5, False),
        ({"messages": "No.", "reward": np.float64(2), "done": np.bool_(True)}, 2.0, True),
        ("No.", None, False),
    ],
)
def test_a_step_may_return_any_form(given: Any, reward: float | None, done: bool) -> None:
    found = read_step(given)
    assert (found["reward"], found["done"]) == (reward, done)
    assert [message["content"] for message in found["messages"]] in (["obs"], ["No."])


@pytest.mark.parametrize("given", [None, 0.5, ["a"], object()])
def test_a_step_that_returned_nothing_usable_is_an_error(given: Any) -> None:
    with pytest.raises(TypeError, match="step returned"):
        read_step(given)


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
def test_a_reward_that_is_not_finite_is_an_error(value: Any) -> None:
    with pytest.raises(ValueError, match="finite"):
        read_step({"reward": value})
    with pytest.raises(ValueError, match="finite"):
        read_step({"reward": 1.0, "parts": {"form": value}})


def test_numbers_of_numpy_stay_numbers() -> None:
    assert to_json({"n": np.int64(3), "a": np.array([1, 2])}) == '{"n": 3, "a": [1, 2]}'


def test_messages_of_a_tuple_are_all_kept() -> None:
    both = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
    assert [message["content"] for message in read_messages(both)] == ["a", "b"]


def test_null_fits_an_optional_choice() -> None:
    properties = {"k": {"type": "string", "enum": ["a", "b"], "nullable": True}}
    function = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    schemas = [{"type": "function", "function": function}]
    assert problem_of(ToolCall(name="f", arguments={"k": None}), schemas) is None
    assert problem_of(ToolCall(name="f", arguments={"k": "c"}), schemas) is not None


def test_the_role_of_a_message_is_text() -> None:
    given = [{"role": None, "content": "a"}, {"content": "b"}, {"role": "system", "content": "c"}]
    assert [message["role"] for message in read_messages(given)] == ["user", "user", "system"]


@pytest.mark.parametrize("name", [None, 7, ["look"]])
def test_a_call_of_a_tokenizers_own_parser_whose_name_is_no_text_is_a_failure(name: Any) -> None:
    good = {"function": {"name": "look", "arguments": {"k": 1}}}
    found = read_calls([{"function": {"name": name, "arguments": {}}}, good])
    assert list(found.calls) == [ToolCall(name="look", arguments={"k": 1})]
    assert len(found.failures) == 1
