"""Metrics of episodes: turns, tokens, tools, and what the environment cost."""

from __future__ import annotations

from collections.abc import Sequence

from rlcli.types import Response, Reward, StepRecord


def measure_episodes(rollouts: Sequence[Response], rewards: Sequence[Reward]) -> StepRecord:
    """`episode/*` and `env/*`; {} where no rollout has turns.

    Means over episodes, but for env/failed: episodes whose environment failed, and
    env/wait_s: seconds that the slowest episode waited in all. time/env_s: of all turns, which
    overlap; time/env_max_s: of the slowest.
    """
    if not any(rollout.turns for rollout in rollouts):
        return {}
    total = len(rollouts)
    turns = [turn for rollout in rollouts for turn in rollout.turns]
    own = sum(turn.num_tokens for turn in turns)
    replied = sum(turn.num_reply_tokens for turn in turns)
    values = [reward.value for reward in rewards if reward.value is not None]
    return {
        "episode/turns_mean": len(turns) / total,
        "episode/tokens": (own + replied) / total,
        "episode/env_tokens": replied / total,
        **({"episode/return": sum(values) / len(values)} if values else {}),
        "env/tool_calls": sum(len(turn.tool_calls) for turn in turns) / total,
        "env/tool_errors": sum(turn.tool_errors for turn in turns) / total,
        "env/parse_failures": sum(turn.parse_failures for turn in turns) / total,
        "env/cut_by_turns": sum(each.finish_reason == "turns" for each in rollouts) / total,
        "env/failed": float(sum(rollout.env_failed for rollout in rollouts)),
        "env/wait_s": max(sum(turn.wait_s for turn in one.turns) for one in rollouts),
        "time/env_s": sum(turn.wait_s for turn in turns),
        "time/env_max_s": max(turn.wait_s for turn in turns),
    }
