"""Episodes with made-up replies, to see whether an environment works and follows its seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlcli.data.readers import Row
from rlcli.envs.calls import sample_call
from rlcli.envs.episode import EnvFacts, EnvReply, Episode, EpisodeFailedError
from rlcli.envs.process import EnvPool, EnvSpec
from rlcli.envs.tasks import SEED, TASK
from rlcli.errors import ConfigError

REPLIES = ("7", "I do not know.", "")
"""What a policy might write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An episode with made-up replies. seen: everything that the environment gave."""

    num_turns: int
    reward: float | None
    is_done: bool
    errors: Sequence[str]
    seen: Sequence[Any]


def try_twice(spec: EnvSpec, facts: EnvFacts, rows: Sequence[Row]) -> list[tuple[Trial, Trial]]:
    """Two episodes of each row from the same seed. Raises: ConfigError if one fails."""
    play = _play_tools if facts.form == "methods" else _play_steps
    pool = EnvPool(spec)
    try:
        return [
            (_play(pool, facts, row, 2 * i, play), _play(pool, facts, row, 2 * i + 1, play))
            for i, row in enumerate(rows)
        ]
    except EpisodeFailedError as error:
        raise ConfigError(f"{spec.target}: {error}") from error
    finally:
        pool.close()


Play = Callable[[Episode, EnvFacts], Trial]


def _play(pool: EnvPool, facts: EnvFacts, row: Row, number: int, play: Play) -> Trial:
    extra = row.extra_info
    episode = Episode(pool, number, extra[TASK], seed=extra[SEED], form=facts.form)
    try:
        return play(episode, facts)
    finally:
        episode.close()


def _play_steps(episode: Episode, facts: EnvFacts) -> Trial:
    opening = episode.begin()
    replies: list[EnvReply] = []
    for text in REPLIES:
        replies.append(episode.step(text, (), is_truncated=False))
        if replies[-1].is_done:
            break
    rewards = [reply.reward for reply in replies if reply.reward is not None]
    return Trial(
        num_turns=len(replies),
        reward=sum(rewards) if rewards else facts.floor,
        is_done=replies[-1].is_done,
        errors=(),
        seen=[opening, replies],
    )


def _play_tools(episode: Episode, facts: EnvFacts) -> Trial:
    """TRL's form: each tool once, with arguments that fit."""
    opening = episode.begin()
    calls = [sample_call(schema) for schema in facts.schemas]
    replies = [episode.call([call]) for call in calls]
    reward = episode.reward() if facts.scores else None
    errors = [str(each.messages[0]["content"]) for each in replies if each.tool_errors]
    return Trial(
        num_turns=len(replies) + 1,
        reward=reward,
        is_done=True,
        errors=errors,
        seen=[opening, replies, reward],
    )
