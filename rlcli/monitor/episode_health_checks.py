"""Health checks of episodes: tool calls, turns, and the time that environments take."""

from __future__ import annotations

from collections.abc import Sequence

from rlcli.config.schema import Config
from rlcli.monitor.health_checks import LEVEL_STEPS, MEAN_STEPS, Check, HealthVerdict
from rlcli.monitor.trend import last_values
from rlcli.types import StepRecord

MAX_UNREAD = 0.2
"""Share of tool calls that cannot be read; a policy that learns makes few."""
UNUSED_STEPS = 20
"""Steps without a tool call after which it is no chance that none was made."""
MAX_CUT_BY_TURNS = 0.2
MAX_ENV_SHARE = 0.5
"""Share of a step's time above which the environment decides how long a run takes."""


def unread_calls(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Many tool calls cannot be read."""
    unread = last_values(steps, "env/parse_failures", LEVEL_STEPS)
    made = last_values(steps, "env/tool_calls", LEVEL_STEPS)
    shares = [bad / max(bad + good, 1e-9) for bad, good in zip(unread, made, strict=False)]
    if not shares or min(shares) <= MAX_UNREAD:
        return None
    says = f"{shares[-1]:.0%} of the tool calls cannot be read."
    cure = (
        f"Set env.tool_format (now {config.env.tool_format}) to the form in which the model writes "
        "calls; rlcli rollouts view shows them."
    )
    return HealthVerdict(name="tool_calls_unread", says=says, cure=cure)


def unused_tools(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """No tool has been called, though there are some."""
    calls = last_values(steps, "env/tool_calls", UNUSED_STEPS)
    were_called = any(step.get("env/tool_calls", 0.0) > 0 for step in steps)
    if not calls or any(calls) or not (config.env.tools is not None or were_called):
        return None
    if any(last_values(steps, "env/parse_failures", UNUSED_STEPS)):
        return None  # calls that cannot be read have a verdict of their own
    says = f"no tool was called in {UNUSED_STEPS} steps."
    cure = (
        "Ask for the tools in the prompt (data.system_prompt), or start from a model that calls "
        "tools; a reward for the call itself helps it to begin."
    )
    return HealthVerdict(name="tools_unused", says=says, cure=cure)


def cut_by_turns(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Many episodes run out of turns."""
    shares = last_values(steps, "env/cut_by_turns", LEVEL_STEPS)
    if not shares or min(shares) <= MAX_CUT_BY_TURNS:
        return None
    says = f"{shares[-1]:.0%} of the episodes are cut after {config.env.max_turns} turns."
    cure = (
        f"Raise env.max_turns (now {config.env.max_turns}), or set algorithm.overlong_filter=true "
        "to leave them out of the loss."
    )
    return HealthVerdict(name="cut_by_turns", says=says, cure=cure)


def slow_environment(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """A step waits for the environment most of its time."""
    waits = last_values(steps, "env/wait_s", MEAN_STEPS)
    took = last_values(steps, "time/step_s", MEAN_STEPS)
    shares = [wait / step for wait, step in zip(waits, took, strict=False) if step > 0]
    if len(shares) < MEAN_STEPS or min(shares) <= MAX_ENV_SHARE:
        return None
    says = f"{min(shares[-1], 1.0):.0%} of a step is waiting for environments ({waits[-1]:.1f} s)."
    env = config.env
    cure = f"Raise env.workers (now {env.workers}) or env.concurrency (now {env.concurrency})"
    if not config.rollout.async_steps:
        cure += "; rollout.async_steps=1 trains meanwhile"
    return HealthVerdict(name="environment_slow", says=says, cure=f"{cure}.")


EPISODE_CHECKS: tuple[Check, ...] = (unread_calls, unused_tools, cut_by_turns, slow_environment)
