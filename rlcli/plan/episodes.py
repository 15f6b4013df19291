"""What episodes add to a step: turns, and waiting for the environment."""

from __future__ import annotations

from dataclasses import dataclass

from rlcli.config.schema import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePlan:
    """Episodes of a step on one rank.

    row_tokens: prompt and all turns and replies of an episode at most. rounds: how often a step
    waits for a reply at most, one after the other, if every reply takes equally long.
    """

    episodes: int
    max_turns: int
    row_tokens: int
    at_once: int
    rounds: int

    def lines(self) -> list[str]:
        """The plan as text."""
        return [
            f"episodes: at most {self.max_turns} turns, in rows of at most {self.row_tokens:,} "
            "tokens, replies of the environment included.",
            f"waiting: {self.episodes} episodes of a rank and step, {self.at_once} in the "
            f"environment at once: replies that take 1 s add at most {self.rounds} s to a step.",
        ]


def plan_episodes(config: Config, *, ranks: int = 1) -> EpisodePlan | None:
    """None for a run without an environment."""
    env = config.env
    if not env.is_on:
        return None
    episodes = max(1, -(-config.train.prompts_per_step // ranks)) * config.rollout.n
    at_once = min(env.concurrency, episodes)
    return EpisodePlan(
        episodes=episodes,
        max_turns=env.max_turns,
        row_tokens=config.data.max_prompt_tokens + config.data.max_response_tokens,
        at_once=at_once,
        rounds=env.max_turns * -(-episodes // at_once),
    )
