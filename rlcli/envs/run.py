"""A run's environment: found and checked before weights load, then put around its sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.data.readers import Row
from rlcli.envs.agent_run import Agent, agent_sampler, find_agent, is_agent
from rlcli.envs.episode import EnvFacts
from rlcli.envs.process import EnvPool, EnvSpec
from rlcli.envs.tasks import (
    EnvRows,
    begun_rows,
    describe_environment,
    own_rows,
    smaller_limit,
    spec_of,
)
from rlcli.errors import ConfigError
from rlcli.rewards.combination import mixes_environment
from rlcli.terminal.i18n import translator
from rlcli.terminal.text import progress_line

if TYPE_CHECKING:
    from rlcli.envs.agent_sampler import AgentSampler
    from rlcli.envs.dialogue import Dialogue
    from rlcli.envs.sampler import EpisodeSampler
    from rlcli.rewards.base import Scorer
    from rlcli.rollout.base import TurnSampler

SCORERS = {"reward.fn": "rule_score", "reward.model": "rm_score", "reward.judge.enabled": "judge"}
"""Setting of another reward -> its part of a mix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An environment, loaded once to be described."""

    spec: EnvSpec
    facts: EnvFacts

    def rows(self, config: Config, *, only_val: bool = False, limit: int | None = None) -> EnvRows:
        """The rows of a run that has no data file. Raises: ConfigError.

        only_val: leave out the rows to train on. limit: of the rows to evaluate on.
        """
        env = config.env
        return own_rows(
            self.spec,
            self.facts,
            num_train=env.tasks,
            num_val=env.val_tasks,
            seed=config.run.seed,
            only_val=only_val,
            val_limit=smaller_limit(limit, config.data.val_limit),
            show=_progress(config),
        )

    def begin(self, rows: Sequence[Row], config: Config) -> list[Row]:
        """Rows of a data file with the messages that reset adds. Raises: ConfigError."""
        if self.facts.form == "functions":
            return [*rows]
        return begun_rows(self.spec, rows, seed=config.run.seed, show=_progress(config))


def _progress(config: Config) -> Callable[[str], None]:
    return progress_line(translator(config.run.lang))


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
    if facts.has_tasks and config.data.train:
        raise ConfigError(
            f"{resolved.where('data.train')}, but {resolved.where(key)} has tasks of its own.\n"
            "Remove data.train."
        )
    if facts.scores:
        _check_mix(resolved, key)
    elif mixes_environment(config.reward):
        raise ConfigError(
            f"{resolved.where('reward.weights')} gives env a weight, and {resolved.where(key)} "
            "gives no reward. Remove env from reward.weights."
        )
    if config.env.credit == "turn" and facts.form != "steps":
        raise ConfigError(
            f"{resolved.where('env.credit')} needs rewards of single turns, and "
            f"{resolved.where(key)} gives one for the whole episode.\n"
            "Leave it out, or give the class a step() that returns rewards."
        )


def _check_mix(resolved: Resolved, key: str) -> None:
    """Raises: ConfigError for another reward beside the environment's, and nothing mixes them."""
    if mixes_environment(resolved.config.reward):
        return
    for name, part in SCORERS.items():
        if name in resolved.explicit and resolved.value(name) not in (None, False):
            raise ConfigError(
                f"{resolved.where(name)} and {resolved.where(key)} both give the reward.\n"
                f"Leave {name} out, or mix them: reward.weights={{env: 0.7, {part}: 0.3}}."
            )


def is_scored_by_env(config: Config, environment: Environment | Agent | None) -> bool:
    """Whether the environment gives the reward, alone or as a part of a mix."""
    return environment is not None and environment.facts.scores


def needs_scorer(config: Config, environment: Environment | Agent | None) -> bool:
    """Whether a function, a judge or a reward model scores, alone or beside the environment."""
    return not is_scored_by_env(config, environment) or mixes_environment(config.reward)


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
    sampler: TurnSampler,
    environment: Environment | Agent,
    dialogue: Dialogue,
    config: Config,
    *,
    log: Path | None = None,
) -> EpisodeSampler | AgentSampler:
    """`sampler` with the environment between its turns. log: file for what environments print."""
    from rlcli.envs.episode_row import EpisodeLimits, EpisodeParts
    from rlcli.envs.sampler import EpisodeSampler

    if isinstance(environment, Agent):
        from rlcli.rollout.native import NativeSampler

        assert isinstance(sampler, NativeSampler)  # preflight lets no other in
        return agent_sampler(sampler, environment, config, log=log)

    env = config.env
    parts = EpisodeParts(
        pool=EnvPool(environment.spec, log=log),
        facts=environment.facts,
        dialogue=dialogue,
        limits=EpisodeLimits(max_turns=env.max_turns, max_turn_tokens=env.max_turn_tokens),
    )
    return EpisodeSampler(sampler, parts, max_num_seqs=config.rollout.max_num_seqs)


def episode_scorer(scorer: Scorer | None) -> Scorer:
    """The scorer of episodes. scorer: None where the environment gives the reward."""
    from rlcli.envs.scorer import EnvironmentScorer, EpisodeScorer

    return EnvironmentScorer() if scorer is None else EpisodeScorer(scorer)


def without_data(config: Config) -> bool:
    """Whether an environment makes the rows."""
    return config.has_own_tasks
