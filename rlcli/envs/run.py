"""A run's environment: found and checked before weights load, then put around its sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.data.readers import Row
from rlcli.envs.agent_run import Agent, agent_sampler, find_agent, is_agent
from rlcli.envs.episode import EnvFacts
from rlcli.envs.process import EnvPool, EnvSpec
from rlcli.envs.tasks import EnvRows, begun_rows, describe_environment, own_rows, spec_of
from rlcli.errors import ConfigError

if TYPE_CHECKING:
    from rlcli.envs.agent_sampler import AgentSampler
    from rlcli.envs.dialogue import Dialogue
    from rlcli.envs.sampler import EpisodeSampler
    from rlcli.rewards.base import Scorer
    from rlcli.rollout.native import NativeSampler

SCORERS = ("reward.fn", "reward.model", "reward.judge.enabled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An environment, loaded once to be described."""

    spec: EnvSpec
    facts: EnvFacts

    def rows(self, config: Config) -> EnvRows:
        """Rows of a run without a data file. Raises: ConfigError."""
        env = config.env
        return own_rows(
            self.spec,
            self.facts,
            num_train=env.tasks,
            num_val=env.val_tasks,
            seed=config.run.seed,
        )

    def begin(self, rows: Sequence[Row], config: Config) -> list[Row]:
        """Rows of a data file with the messages that reset adds. Raises: ConfigError."""
        if self.facts.form == "functions":
            return [*rows]
        return begun_rows(self.spec, rows, seed=config.run.seed)


def find_environment(resolved: Resolved) -> Environment | Agent | None:
    """The environment or the agent of a run; None without one.

    Raises: ConfigError for a file that is not there or does not load (with file and line), a tool
    without types or docstring, and settings that contradict what the environment has.
    """
    config = resolved.config
    if not config.env.is_on:
        return None
    if is_agent(config.env.path):
        found = find_agent(config)
        _check_fit(resolved, found.facts)
        return found
    spec = spec_of(config.env)
    facts = describe_environment(spec)
    _check_fit(resolved, facts)
    return Environment(spec=spec, facts=facts)


def _check_fit(resolved: Resolved, facts: EnvFacts) -> None:
    """Raises: ConfigError for settings that contradict what the environment has."""
    config = resolved.config
    key = "env.path" if config.env.path is not None else "env.tools"
    if facts.num_tasks is not None and config.data.train:
        raise ConfigError(
            f"{resolved.where('data.train')}, but {resolved.where(key)} has "
            f"{facts.num_tasks} tasks of its own. Remove data.train."
        )
    if facts.scores:
        for name in SCORERS:
            if name in resolved.explicit and resolved.value(name) not in (None, False):
                raise ConfigError(
                    f"{resolved.where(name)} and {resolved.where(key)} both give the reward. "
                    f"Leave {name} out."
                )


def build_dialogue(
    config: Config, environment: Environment | Agent, tokenizer: Any, *, end_ids: Sequence[int]
) -> Dialogue:
    """The turns of a tokenizer. Raises: ModelError if its template cannot hold them."""
    from rlcli.envs.dialogue import Dialogue

    return Dialogue(
        tokenizer,
        end_ids=end_ids,
        schemas=environment.facts.schemas,
        tool_format=config.env.tool_format,
        template_kwargs=config.data.chat_template_kwargs,
        max_reply_tokens=config.env.max_reply_tokens,
        replies_are_tools=environment.facts.form in ("functions", "methods"),
    )


def episode_sampler(
    sampler: NativeSampler,
    environment: Environment | Agent,
    dialogue: Dialogue,
    config: Config,
    *,
    log: Path | None = None,
) -> EpisodeSampler | AgentSampler:
    """`sampler` with the environment between its turns. log: file for what environments print."""
    if isinstance(environment, Agent):
        return agent_sampler(sampler, environment, config, log=log)
    from rlcli.envs.sampler import EpisodeLimits, EpisodeSampler

    env = config.env
    limits = EpisodeLimits(max_turns=env.max_turns, max_turn_tokens=env.max_turn_tokens)
    pool = EnvPool(environment.spec, log=log)
    return EpisodeSampler(sampler, pool, environment.facts, dialogue, limits)


def episode_scorer(scorer: Scorer | None) -> Scorer:
    """The scorer of episodes. scorer: None where the environment gives the reward."""
    from rlcli.envs.scorer import EnvironmentScorer, EpisodeScorer

    return EnvironmentScorer() if scorer is None else EpisodeScorer(scorer)


def without_data(config: Config) -> bool:
    """Whether an environment makes the rows."""
    return config.env.path is not None and not config.data.train
