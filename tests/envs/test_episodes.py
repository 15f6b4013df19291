"""Episodes end to end: an environment's process, its failures, and the rows that come of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import native_parts
import pytest
import torch

from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.data.readers import Row
from rlcli.envs.calls import ToolCall
from rlcli.envs.episode import Episode, EpisodeFailedError
from rlcli.envs.process import EnvPool, EnvSpec
from rlcli.envs.run import Environment, build_dialogue, episode_sampler
from rlcli.envs.sampler import EpisodeSampler
from rlcli.envs.tasks import describe_environment
from rlcli.errors import ConfigError
from rlcli.rollout.base import SamplingParams
from rlcli.types import Prompt, Rollout

COUNTING = '''\
import os, random, time

class Count:
    """Counts its steps; `sums` of the seed and of what was written."""

    def __init__(self, turns=3, slow=0.0, dies=0.0):
        self.turns, self.slow, self.dies = turns, slow, dies

    def reset(self, task, seed):
        self.left, self.random = self.turns, random.Random(seed)
        return f"{self.random.randrange(100)}+1="

    def step(self, reply):
        time.sleep(self.slow)
        if "hang" in reply.text:
            time.sleep(60)
        self.left -= 1
        text = str(self.random.randrange(100))
        return {"messages": text, "reward": len(reply.text) / 10, "done": not self.left}
'''
TOOLS = '''\
import os, time

def look(k: int) -> str:
    """Look up.

    Args:
        k: The key.
    """
    if k == 13:
        raise ValueError("unlucky")
    if k == 14:
        os._exit(1)
    if k == 15:
        time.sleep(60)
    return str(k + 1)
'''


def write(folder: Path, text: str) -> Path:
    file = folder / "env.py"
    file.write_text(text)
    return file


@contextmanager
def pool_of(spec: EnvSpec) -> Iterator[EnvPool]:
    pool = EnvPool(spec)
    try:
        yield pool
    finally:
        pool.close()


def episode(pool: EnvPool, *, number: int = 0, form: str = "steps", seed: int = 1) -> Episode:
    return Episode(pool, number, {}, seed=seed, form=form)


def step(one: Episode, text: str = "abc") -> Any:
    return one.step(text, (), is_truncated=False)


def kill_process(pool: EnvPool) -> None:
    os.kill(pool.shared(0)._process.pid, signal.SIGKILL)
    while not pool._slots[0].is_down:  # type: ignore[union-attr]
        time.sleep(0.01)


def test_the_seed_decides_what_an_episode_sees(tmp_path: Path) -> None:
    spec = EnvSpec(target=f"{write(tmp_path, COUNTING)}:Count")
    with pool_of(spec) as pool:
        first, same = episode(pool, number=0), episode(pool, number=1)
        other = episode(pool, number=2, seed=2)
        opening = first.begin()
        assert same.begin() == opening != other.begin()
        assert step(first).messages == step(same).messages
        assert [step(first).is_done, step(first).is_done] == [False, True]


def test_an_episode_goes_on_where_it_was_when_its_process_is_killed(tmp_path: Path) -> None:
    spec = EnvSpec(target=f"{write(tmp_path, COUNTING)}:Count")
    with pool_of(spec) as pool:
        killed, whole = episode(pool, number=0), episode(pool, number=1)
        assert killed.begin() == whole.begin()
        replies = [step(whole), step(whole)]
        assert step(killed) == replies[0]
        kill_process(pool)
        assert step(killed) == replies[1]


def test_a_hang_fails_its_episode_the_second_time_and_no_other(tmp_path: Path) -> None:
    target = f"{write(tmp_path, COUNTING)}:Count"
    spec = EnvSpec(target=target, timeout_s=0.5, args={"turns": 9})
    with pool_of(spec) as pool:
        hanging, others = episode(pool), [episode(pool, number=i) for i in range(1, 9)]
        for each in [hanging, *others]:
            each.begin()
        errors: list[Exception] = []

        def hang() -> None:
            try:
                step(hanging, "hang")
            except EpisodeFailedError as error:
                errors.append(error)

        thread = threading.Thread(target=hang)
        thread.start()
        for _ in range(3):
            assert all(len(step(each).messages) == 1 for each in others)
            time.sleep(0.4)
        thread.join(20)
        assert "failed twice" in str(errors[0])


def test_an_environment_that_is_slow_in_all_fails_its_episode(tmp_path: Path) -> None:
    target, args = f"{write(tmp_path, COUNTING)}:Count", {"turns": 9, "slow": 0.2}
    with pool_of(EnvSpec(target=target, args=args, episode_timeout_s=0.3)) as pool:
        one = episode(pool)
        one.begin()
        with pytest.raises(EpisodeFailedError):
            _ = [step(one) for _ in range(9)]


def test_episodes_are_shared_out_to_processes(tmp_path: Path) -> None:
    text = COUNTING.replace(
        "str(self.random.randrange(100))\n        return", "str(os.getpid())\n        return"
    )
    with pool_of(EnvSpec(target=f"{write(tmp_path, text)}:Count", workers=2)) as pool:
        seen = set()
        for number in range(4):
            one = episode(pool, number=number)
            one.begin()
            seen.add(step(one).messages[0]["content"])
        assert len(seen) == 2


def test_an_environment_whose_answers_are_not_its_seeds_is_not_trusted(tmp_path: Path) -> None:
    text = COUNTING.replace("random.Random(seed)", "random.Random()")
    spec = EnvSpec(target=f"{write(tmp_path, text)}:Count")
    with pool_of(spec) as pool:
        one = episode(pool)
        one.begin()
        kill_process(pool)
        with pytest.raises(EpisodeFailedError, match="differently"):
            step(one)


def test_what_a_tool_raises_goes_back_and_a_tool_that_kills_its_process_fails(
    tmp_path: Path,
) -> None:
    spec = EnvSpec(target=str(write(tmp_path, TOOLS)), is_tools=True)
    with pool_of(spec) as pool:
        one = episode(pool, form="functions")
        assert one.call([ToolCall(name="look", arguments={"k": 4})]).messages[0]["content"] == "5"
        failed = one.call([ToolCall(name="look", arguments={"k": 13})])
        assert failed.tool_errors == 1
        assert "unlucky" in failed.messages[0]["content"]
        with pytest.raises(EpisodeFailedError):
            one.call([ToolCall(name="look", arguments={"k": 14})])


def test_a_tool_that_gives_no_answer_twice_is_an_error_for_the_model(tmp_path: Path) -> None:
    spec = EnvSpec(target=str(write(tmp_path, TOOLS)), is_tools=True, timeout_s=0.5)
    with pool_of(spec) as pool:
        one = episode(pool, form="functions")
        late = one.call([ToolCall(name="look", arguments={"k": 15})])
        assert late.tool_errors == 1
        assert "0.5 s" in late.messages[0]["content"]
        assert one.call([ToolCall(name="look", arguments={"k": 4})]).messages[0]["content"] == "5"


def test_environments_get_no_keys_but_those_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_API_KEY", "secret")
    text = TOOLS.replace("str(k + 1)", "os.environ.get('A_API_KEY', 'none')")
    file, call = str(write(tmp_path, text)), [ToolCall(name="look", arguments={"k": 1})]
    for keep, seen in (((), "none"), (("A_API_KEY",), "secret")):
        with pool_of(EnvSpec(target=file, is_tools=True, keep_env=keep)) as pool:
            assert episode(pool, form="functions").call(call).messages[0]["content"] == seen


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("def f(x):\n    return x\n", "", "env.py:1: f cannot be offered"),
        ("class A:\n    pass\n", ":A", "no method reset"),
        ("class A:\n    def reset(self): ...\n", ":B", "no class B"),
        ("import nothing_like_it\n", ":A", "env.py:1: cannot be loaded"),
        ("class A:\n    def reset(self): ...\n", ":A", "neither"),
    ],
)
def test_a_file_that_is_no_environment_is_refused_with_its_line(
    tmp_path: Path, text: str, name: str, why: str
) -> None:
    spec = EnvSpec(target=f"{write(tmp_path, text)}{name}", is_tools=not name)
    with pytest.raises(ConfigError, match=why):
        describe_environment(spec)


def sampler_of(
    target: str, tiny_model: Path, *, args: dict[str, Any] | None = None, **changes: Any
) -> tuple[EpisodeSampler, Environment]:
    config = with_values(Config(), {"env.path": target, "env.args": args or {}, **changes})
    lm, tokenizer = native_parts.load(tiny_model)
    tokenizer.chat_template = None
    spec = EnvSpec(target=target, args=args or {})
    environment = Environment(spec=spec, facts=describe_environment(spec))
    dialogue = build_dialogue(config, environment, tokenizer, end_ids=(2,))
    native = native_parts.sampler(lm, tokenizer, eos_token_ids=tuple(range(2, 60)))
    return episode_sampler(native, environment, dialogue, config), environment


def prompts_of(environment: Environment, sampler: EpisodeSampler, count: int) -> list[Prompt]:
    config = with_values(Config(), {"env.tasks": count, "env.val_tasks": 0})
    rows: list[Row] = environment.rows(config).train
    tokenizer = sampler.sampler.tokenizer
    return [
        Prompt(
            id=row.id,
            messages=tuple(row.prompt),  # type: ignore[arg-type]
            token_ids=tuple(tokenizer(row.prompt[-1]["content"])["input_ids"]),  # type: ignore[index]
            extra_info=row.extra_info,
        )
        for row in rows
    ]


PARAMS = SamplingParams(n=4, max_tokens=60, temperature=1.0)


def sample(tmp_path: Path, tiny_model: Path, **changes: Any) -> tuple[list[Rollout], Any]:
    target = f"{write(tmp_path, COUNTING)}:Count"
    sampler, environment = sampler_of(target, tiny_model, **changes)
    try:
        prompts = prompts_of(environment, sampler, 5)
        return sampler.generate(prompts, PARAMS, seed=3), sampler.sampler.lm
    finally:
        sampler.close()


def test_log_probs_of_episodes_are_the_trainers(tmp_path: Path, tiny_model: Path) -> None:
    rollouts, lm = sample(tmp_path, tiny_model, args={"turns": 4})
    assert max(len(rollout.turns) for rollout in rollouts) == 4
    assert any(0 in (rollout.mask or ()) for rollout in rollouts)
    found = native_parts.trainer_logprobs(lm, rollouts, 1.0)
    own = [
        value
        for rollout in rollouts
        for value, mask in zip(rollout.logprobs, rollout.mask or (), strict=True)
        if mask
    ]
    assert torch.allclose(found, torch.tensor(own), atol=1e-5)


def test_an_episode_is_its_turns_and_what_the_environment_wrote(
    tmp_path: Path, tiny_model: Path
) -> None:
    rollouts, _ = sample(tmp_path, tiny_model, args={"turns": 4})
    for rollout in rollouts:
        assert rollout.mask is not None
        assert len(rollout.token_ids) == len(rollout.mask) == len(rollout.logprobs) <= 60
        assert sum(rollout.mask) == sum(turn.num_tokens for turn in rollout.turns)
        replied = sum(turn.num_reply_tokens for turn in rollout.turns)
        assert len(rollout.mask) - sum(rollout.mask) == replied
        assert rollout.text == rollout.turns[-1].text
        assert rollout.reward is not None
        paid = sum(len(turn.text) / 10 for turn in rollout.turns)
        assert rollout.reward.value == pytest.approx(paid)


def test_limits_end_episodes_and_say_so(tmp_path: Path, tiny_model: Path) -> None:
    rollouts, _ = sample(
        tmp_path, tiny_model, args={"turns": 99}, **{"env.max_turns": 3, "env.max_turn_tokens": 5}
    )
    assert {rollout.finish_reason for rollout in rollouts} == {"turns"}
    assert all(len(rollout.turns) == 3 for rollout in rollouts)
    assert max(turn.num_tokens for rollout in rollouts for turn in rollout.turns) <= 5


def test_a_slow_environment_and_other_prompts_beside_it_change_no_token(
    tmp_path: Path, tiny_model: Path
) -> None:
    fast, _ = sample(tmp_path, tiny_model, args={"turns": 3})
    slow, _ = sample(tmp_path, tiny_model, args={"turns": 3, "slow": 0.05})
    assert [(one.token_ids, one.logprobs) for one in fast] == [
        (one.token_ids, one.logprobs) for one in slow
    ]
    target = f"{tmp_path / 'env.py'}:Count"
    sampler, environment = sampler_of(target, tiny_model, args={"turns": 3})
    try:
        prompts = prompts_of(environment, sampler, 5)
        some = sampler.generate(prompts[3:], PARAMS, seed=3, prompt_indices=[3, 4])
    finally:
        sampler.close()
    assert [one.token_ids for one in some] == [one.token_ids for one in fast[12:]]


def test_slow_environments_work_side_by_side(tmp_path: Path, tiny_model: Path) -> None:
    """20 episodes of 2 turns of 0.3 s: 0.6 s one after the other would be 12 s."""
    begun = time.perf_counter()
    rollouts, _ = sample(tmp_path, tiny_model, args={"turns": 2, "slow": 0.3})
    assert len(rollouts) == 20
    assert time.perf_counter() - begun < 8
