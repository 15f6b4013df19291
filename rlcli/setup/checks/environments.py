"""Settings of environments, held against the rest before anything is loaded."""

from __future__ import annotations

from rlcli.config.episodes import EnvConfig
from rlcli.config.resolved import Resolved
from rlcli.envs.agent_run import is_agent
from rlcli.envs.agents import AGENT, absolute_command
from rlcli.envs.loading import absolute_target, split_tools
from rlcli.envs.process import find_python
from rlcli.envs.run import SCORERS
from rlcli.errors import ConfigError
from rlcli.rewards.combination import mixes_environment

SCORES = "env.agent_scores"


def settle_environment(resolved: Resolved) -> Resolved:
    """`resolved`, without a preset's data where the environment makes its tasks.

    Raises: ConfigError for what does not go together with an environment.
    """
    config = resolved.config
    env = config.env
    if not env.is_on:
        return resolved
    key = "env.path" if env.path is not None else "env.tools"
    if env.path is not None and env.tools is not None:
        raise ConfigError(
            f"{resolved.where('env.path')} and {resolved.where('env.tools')} are both given: an "
            "environment has its own tools. Keep one."
        )
    if env.path is not None and is_agent(env.path):
        if config.rollout.engine in ("vllm", "vllm_server"):
            raise ConfigError(
                f"{resolved.where(key)} needs the native sampler so far, got "
                f"{resolved.where('rollout.engine')}. Use rollout.engine=native."
            )
        if env.path.startswith(AGENT):
            if env.args or env.python is not None:
                given = "env.python" if env.python is not None else "env.args"
                raise ConfigError(
                    f"{resolved.where(key)} takes no {given}: write its arguments and its Python "
                    "into the command."
                )
            resolved = resolved.override({"env.path": absolute_command(env.path)})
        resolved = _settle_scores(resolved)
        if env.python is not None:
            resolved = resolved.override({"env.python": find_python(env.python)})
    else:
        resolved = resolved.override(_absolute(env))
    if env.path is None or "data.train" in resolved.explicit:
        return resolved
    if "data.val" in resolved.explicit and config.data.val:
        raise ConfigError(
            f"{resolved.where('data.val')} cannot be used: {resolved.where(key)} makes the tasks.\n"
            "Remove data.val. env.val_tasks is the number of tasks to evaluate on."
        )
    return resolved.override({"data.train": [], "data.val": []}, origin=resolved.sources[key])


def _absolute(env: EnvConfig) -> dict[str, str]:
    """Paths that a run goes on with in another folder."""
    found: dict[str, str] = {}
    if env.path is not None:
        found["env.path"] = absolute_target(env.path)
    if env.tools is not None:
        found["env.tools"] = ",".join(map(absolute_target, split_tools(env.tools)))
    if env.python is not None:
        found["env.python"] = find_python(env.python)
    return found


def _settle_scores(resolved: Resolved) -> Resolved:
    """`resolved` with env.agent_scores off if another scorer is named."""
    if mixes_environment(resolved.config.reward):
        return resolved
    given = [name for name in SCORERS if name in resolved.explicit and resolved.value(name)]
    if not given or SCORES in resolved.explicit:
        return resolved
    return resolved.override({SCORES: False}, origin=resolved.sources[given[0]])
