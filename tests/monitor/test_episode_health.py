"""Verdicts on episodes: each by a series made for it, and silence where nothing is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.monitor.health import diagnose

TOOLS = with_values(Config(), {"env.tools": "tools.py", "env.max_turns": 4})
WELL = {
    "env/tool_calls": 0.9,
    "env/parse_failures": 0.05,
    "env/cut_by_turns": 0.1,
    "env/wait_s": 1.0,
    "time/step_s": 10.0,
}


def found(count: int, config: Config = TOOLS, **changes: Any) -> dict[str, str]:
    """Verdicts after `count` equal steps: name to cure."""
    values = {**WELL, **{key.replace("__", "/"): value for key, value in changes.items()}}
    steps = [{**values, "step": float(i)} for i in range(count)]
    return {verdict.name: verdict.cure for verdict in diagnose(steps, config)}


def test_a_healthy_run_has_none() -> None:
    assert found(40) == {}


@pytest.mark.parametrize(
    ("changes", "steps", "name", "knob"),
    [
        ({"env__parse_failures": 0.5}, 2, "tool_calls_unread", "env.tool_format"),
        ({"env__tool_calls": 0, "env__parse_failures": 0}, 20, "tools_unused", "system_prompt"),
        ({"env__cut_by_turns": 0.4}, 2, "cut_by_turns", "env.max_turns (now 4)"),
        ({"env__wait_s": 6.0}, 3, "environment_slow", "env.workers (now 1)"),
    ],
)
def test_each_problem_has_a_verdict_with_its_cure(
    changes: dict[str, float], steps: int, name: str, knob: str
) -> None:
    assert found(steps - 1, **changes) == {}
    verdicts = found(steps, **changes)
    assert list(verdicts) == [name]
    assert knob in verdicts[name]


def test_an_environment_without_tools_is_not_blamed_for_calling_none() -> None:
    config = with_values(Config(), {"env.path": "e.py:E"})
    assert found(30, config, env__tool_calls=0.0, env__parse_failures=0.0) == {}


def test_calls_that_cannot_be_read_are_not_called_missing() -> None:
    assert list(found(30, env__tool_calls=0.0, env__parse_failures=0.5)) == ["tool_calls_unread"]
