"""Environment processes that are killed while episodes are sampled."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import native_parts
import pytest

from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.envs.process import EnvProcess, EnvSpec
from rlcli.envs.run import Environment, build_dialogue, episode_sampler
from rlcli.envs.sampler import EpisodeSampler
from rlcli.envs.tasks import describe_environment
from rlcli.rollout.base import SamplingParams
from rlcli.types import Prompt

ENVIRONMENT = '''\
import random

class Add:
    """Adds up what is written, from a start that the seed decides."""

    def reset(self, task, seed):
        self.random = random.Random(seed)
        self.left, self.total = 3, self.random.randrange(9)

    def step(self, reply):
        self.left -= 1
        self.total += len(reply.text)
        reward = 1.0 + self.total / 100
        return {"messages": f"{self.total}", "reward": reward, "done": not self.left}
'''
PARAMS = SamplingParams(n=4, max_tokens=60)
PROMPTS = [
    Prompt(id=str(i), messages=(), token_ids=(60 + i, 70), extra_info={"env_seed": i})
    for i in range(4)
]


@pytest.fixture
def sampler(tmp_path: Path, tiny_model: Path) -> Iterator[EpisodeSampler]:
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    target = f"{tmp_path / 'env.py'}:Add"
    config = with_values(Config(), {"env.path": target, "env.max_turn_tokens": 12})
    lm, tokenizer = native_parts.load(tiny_model)
    tokenizer.chat_template = None
    spec = EnvSpec(target=target, workers=2)
    environment = Environment(spec=spec, facts=describe_environment(spec))
    dialogue = build_dialogue(config, environment, tokenizer, end_ids=(2,))
    native = native_parts.sampler(lm, tokenizer, eos_token_ids=tuple(range(2, 60)))
    made = episode_sampler(native, environment, dialogue, config)
    yield made
    made.close()


def episodes(sampler: EpisodeSampler, seed: int) -> list[tuple[Any, ...]]:
    """All that a step learns from."""
    found = sampler.generate(PROMPTS, PARAMS, seed=seed)
    return [(one.token_ids, one.logprobs, one.mask, one.reward) for one in found]


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.nightly)])
def test_a_killed_process_changes_no_bit_of_what_is_learned_from(
    sampler: EpisodeSampler, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """One kill in each of `kills` calls, before a request that is drawn at random."""
    undisturbed = [episodes(sampler, seed) for seed in range(kills)]
    ask, draw, killed = EnvProcess.request, random.Random(0), 0
    requests, fatal = count(), 0

    def request(process: EnvProcess, *given: Any, **named: Any) -> Any:
        nonlocal killed
        if next(requests) == fatal:
            killed += 1
            os.kill(process._process.pid, signal.SIGKILL)
        return ask(process, *given, **named)

    monkeypatch.setattr(EnvProcess, "request", request)
    for seed in range(kills):
        requests, fatal = count(), draw.randrange(40)
        assert episodes(sampler, seed) == undisturbed[seed]
    assert killed == kills
    rewards = [reward for step in undisturbed for *_, reward in step]
    assert all(reward is not None and reward.value >= 1.0 for reward in rewards)
