"""Episodes of several turns: the settings under `env`."""

from __future__ import annotations

from typing import Any, Literal

from rlcli.config.base import (
    Count,
    Finite,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
)


class EnvConfig(Section):
    """An environment or tools, between the turns of the policy."""

    path: str | None = None
    """Environment: FILE.py:CLASS, reasoning-gym:NAME, textarena:NAME, openenv:URL, agent:COMMAND or
    verifiers:NAME."""
    tools: str | None = None
    """Files of typed functions to call, with commas between; python: runs code in the sandbox."""
    python: str | None = None
    """Python that runs the environment, with packages of its own; none: this one."""
    args: dict[str, Any] = {}
    """Arguments of the environment's class: env.args.size=5."""
    tasks: Positive = 256
    """Tasks of an epoch, where the environment makes them (no --data)."""
    val_tasks: NonNegative = 64
    """Tasks to evaluate on, where the environment makes them; 0: no evaluation."""
    credit: Literal["outcome", "turn"] = "outcome"
    """Whether a reward of step() counts for all turns, or for its own and those before (turn)."""
    pass_mark: Finite | None = None
    """Smallest reward of the environment that passes; none: 0.5, if all are between 0 and 1."""
    max_turns: Count = 8
    """Turns of an episode at most."""
    max_turn_tokens: Positive | None = None
    """Longest turn; none: only data.max_response_tokens bounds the whole episode."""
    max_reply_tokens: Positive = 512
    """Longest message of the environment; a longer one is cut in the middle."""
    timeout_s: PositiveFloat = 30.0
    """Seconds one step or tool may take before its process is killed."""
    episode_timeout_s: PositiveFloat = 600.0
    """Seconds the environment may take for an episode in all."""
    workers: Count = 1
    """Environment processes of each rank."""
    concurrency: Count = 64
    """Episodes of a rank that may be in the environment at once, as threads of its processes."""
    batch_wait_s: NonNegativeFloat = 1.0
    """Seconds that calls of agents wait for those of other agents, to be sampled together."""
    agent_scores: bool = True
    """Whether agents give the reward: the last line that they print; else --reward scores."""
    tool_format: Literal["auto", "hermes", "xml", "llama", "mistral", "pythonic"] = "auto"
    """How calls are written; auto: as the chat template does (hermes without one)."""
    keep_env: list[str] = []
    """Environment variables with keys that the environment may read; others are kept from it."""

    @property
    def is_on(self) -> bool:
        """Whether rollouts are episodes."""
        return self.path is not None or self.tools is not None

    @property
    def target(self) -> str:
        """The file and class, or the file of tools."""
        return self.path or self.tools or ""
