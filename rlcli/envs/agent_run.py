"""A run's agent: found and checked before weights load, then put around its sampler."""

from __future__ import annotations

import json
import os
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rlcli.config.schema import Config
from rlcli.data.readers import Row
from rlcli.envs.agents import AGENT, AgentEnd, Agents, agent_environment, command_of
from rlcli.envs.episode import EnvFacts
from rlcli.envs.process import EnvSpec
from rlcli.envs.tasks import MAX_HELD_OUT, SEED, TASK, EnvRows, smaller_limit, spec_of
from rlcli.errors import ConfigError
from rlcli.run_dir.rollout_files import printable

if TYPE_CHECKING:
    from rlcli.envs.agent_sampler import AgentSampler
    from rlcli.envs.endpoint import WaitingCall
    from rlcli.envs.recording import ChatTexts, RowLimits
    from rlcli.rollout.native import NativeSampler

VERIFIERS = "verifiers:"
AGENT_FORM = "agent"
DESCRIBE_LIMIT_S = 300.0
"""Seconds to count the tasks of a task set, which may be loaded from the network."""


def is_agent(target: str | None) -> bool:
    """Whether env.path names a program that calls the policy."""
    return target is not None and target.startswith((AGENT, VERIFIERS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """An agent's command."""

    spec: EnvSpec
    facts: EnvFacts
    argv: Sequence[str]

    def rows(self, config: Config, *, only_val: bool = False, limit: int | None = None) -> EnvRows:
        """The rows of a run that has no data file: indices and seeds, or a task set's tasks.

        only_val: no rows to train on. limit: of the rows to evaluate on.
        """
        env, total = config.env, self.facts.num_tasks
        held = env.val_tasks if total is None else min(env.val_tasks, total // MAX_HELD_OUT)
        num = env.tasks if total is None else min(env.tasks, total - held)
        first = env.tasks if total is None else total - held
        most = smaller_limit(limit, config.data.val_limit)
        num_val = held if most is None else min(held, most)
        seed = config.run.seed
        notes: list[str] = []
        if total is not None and (unused := total - held - num) > 0:
            notes.append(f"{unused} of {total} tasks are not used: env.tasks is {env.tasks}.")
        return EnvRows(
            train=[] if only_val else [_row("train", index, seed) for index in range(num)],
            val=[_row("val", first + index, seed) for index in range(num_val)],
            notes=notes,
        )

    def begin(self, rows: Sequence[Row], config: Config) -> list[Row]:
        """Rows of a data file as tasks: their columns, prompt and ground_truth."""
        return [
            replace(
                row,
                extra_info={
                    **row.extra_info,
                    TASK: {
                        **row.columns,
                        "id": row.id,
                        "prompt": row.prompt,
                        "ground_truth": row.ground_truth,
                    },
                    SEED: _seed(config.run.seed, row.id),
                },
            )
            for row in rows
        ]


def find_agent(config: Config) -> Agent:
    """The agent that env.path names. Raises: ConfigError if it cannot be started."""
    target = config.env.path or ""
    spec = replace(spec_of(config.env), is_tools=False)
    if target.startswith(AGENT):
        return Agent(spec=spec, facts=_agent_facts(config, None), argv=command_of(target))
    python = config.env.python
    if python is None:
        raise ConfigError(
            f"{target} needs a Python with verifiers 0.4, which cannot share this one.\n"
            "python3 -m venv vf && vf/bin/pip install verifiers==0.4.0 uv, then --env_python "
            "vf/bin/python."
        )
    file = str(Path(__file__).with_name("verifiers_agent.py"))
    name = target.removeprefix(VERIFIERS)
    argv = [os.path.expanduser(python), file, name, json.dumps(_nested(config.env.args))]
    num_tasks = _count_tasks(target, [*argv, "--describe"], config.env.keep_env)
    return Agent(spec=spec, facts=_agent_facts(config, num_tasks), argv=argv)


def _nested(args: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as sections: {"a.b": 1} is {"a": {"b": 1}}."""
    out: dict[str, Any] = {}
    for key, value in args.items():
        *path, name = key.split(".")
        section = out
        for each in path:
            section = section.setdefault(each, {})
        section[name] = value
    return out


def _agent_facts(config: Config, num_tasks: int | None) -> EnvFacts:
    scores = config.env.agent_scores
    return EnvFacts(
        form=AGENT_FORM,
        schemas=(),
        has_tasks=num_tasks is not None,
        num_tasks=num_tasks,
        scores=scores,
        floor=0.0,
        knows_answers=False,
    )


def _count_tasks(target: str, argv: Sequence[str], keep_env: Sequence[str]) -> int:
    """The number of tasks of a task set. Raises: ConfigError."""
    try:
        found = subprocess.run(
            argv,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=DESCRIBE_LIMIT_S,
            stdin=subprocess.DEVNULL,
            env=agent_environment(os.environ, keep=keep_env),
            check=False,
        )
        lines = found.stdout.strip().splitlines()
        return int(json.loads(lines[-1])["num_tasks"])
    except OSError as error:
        raise ConfigError(f"env.python={argv[0]} cannot be started: {error}.") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"{target} was not loaded within {DESCRIBE_LIMIT_S:g} s: does it download its data?"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        last = found.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise ConfigError(
            f"{target} cannot be loaded by {argv[0]}: {printable(last[0])}.\n"
            "Its package must be installed there, or in the current folder; see docs/agents.md."
        ) from error


def chat_texts(config: Config, sampler: NativeSampler) -> ChatTexts:
    """Messages to tokens and back, for the sampler's model."""
    from rlcli.envs.recording import ChatTexts

    return ChatTexts(
        sampler.tokenizer,
        end_ids=sampler.eos_token_ids,
        tool_format=config.env.tool_format,
        system_prompt=config.data.system_prompt,
        template_kwargs=config.data.chat_template_kwargs,
        max_reply_tokens=config.env.max_reply_tokens,
    )


def row_limits(config: Config) -> RowLimits:
    """Bounds of episodes in tokens and turns."""
    from rlcli.envs.recording import RowLimits

    return RowLimits(
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_row_tokens=config.data.max_response_tokens,
        max_turn_tokens=config.env.max_turn_tokens,
        max_turns=config.env.max_turns,
    )


def agent_sampler(
    sampler: NativeSampler, agent: Agent, config: Config, *, log: Path | None = None
) -> AgentSampler:
    """`sampler` behind an endpoint that agents call. log: file for what agents print."""
    from rlcli.envs.agent_sampler import AgentLimits, AgentSampler
    from rlcli.envs.verifiers_agent import FOLDER_OF_TOKENIZER

    env = config.env
    events: SimpleQueue[WaitingCall | AgentEnd] = SimpleQueue()
    folder = str(Path(sampler.tokenizer.name_or_path).absolute())
    agents = Agents(
        agent.argv,
        events.put,
        keep_env=env.keep_env,
        variables={FOLDER_OF_TOKENIZER: folder},
        log=log,
    )
    limits = AgentLimits(
        timeout_s=env.timeout_s,
        episode_timeout_s=env.episode_timeout_s,
        batch_wait_s=env.batch_wait_s,
        concurrency=env.concurrency,
        scores=agent.facts.scores,
    )
    return AgentSampler(
        sampler,
        chat_texts(config, sampler),
        row_limits(config),
        limits,
        agents,
        events,
        max_num_seqs=sampler.max_num_seqs,
    )


def _row(name: str, index: int, seed: int) -> Row:
    return Row(
        id=f"{name}:{index}",
        prompt=f"task {index}",
        extra_info={TASK: {"index": index, "split": name}, SEED: _seed(seed, name, index)},
    )


def _seed(*parts: Any) -> int:
    return zlib.crc32(repr(parts).encode())
