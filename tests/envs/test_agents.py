"""Episodes of agents: rows as trained, the same whatever comes first, and what fails."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import native_parts
import pytest
import torch
from agent_parts import GOOD, command, prompts, sampler_of
from waiting import wait_until

from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.envs.agent_run import find_agent
from rlcli.envs.agents import absolute_command, command_of
from rlcli.errors import ConfigError
from rlcli.rollout.base import SamplingParams
from rlcli.types import Rollout

ROOT = Path(__file__).resolve().parents[2]
PARAMS = SamplingParams(n=3, max_tokens=60)
SEVERAL = """
first = talk("1+2=", "3+4=")
talk("1+9=")
print(json.dumps({"reward": 1.0}))
"""

OVER_A_LIMIT = """
talk('1')
try:
    talk('1' * 500)
except OSError:
"""


def sample(
    folder: Path, text: str, tiny_model: Path, *, count: int = 2, **changes: Any
) -> list[Rollout]:
    with sampler_of(folder, text, tiny_model, **changes) as sampler:
        return sampler.generate(prompts(count), PARAMS, seed=3)


def errors(rollouts: list[Rollout]) -> set[str]:
    """Why the rollouts are unscored; all of them must be."""
    for one in rollouts:
        assert one.reward is not None
        assert one.reward.value is None
        assert len(one.token_ids) == len(one.logprobs) > 0
    return {str(one.reward.error) for one in rollouts if one.reward is not None}


@pytest.mark.parametrize("text", [GOOD, SEVERAL])
def test_log_probs_of_episodes_are_the_trainers(
    tmp_path: Path, tiny_model: Path, text: str
) -> None:
    with sampler_of(tmp_path, text, tiny_model) as sampler:
        rollouts = sampler.generate(prompts(2), PARAMS, seed=3)
        lm = sampler.sampler.lm  # type: ignore[attr-defined]
        found = native_parts.trainer_logprobs(lm, rollouts, 1.0)
    rows = [row for rollout in rollouts for row in (rollout, *rollout.more)]
    assert (len(rows) > len(rollouts)) == (text is SEVERAL)
    own = [
        value
        for row in rows
        for value, mask in zip(row.logprobs, row.mask or (), strict=True)
        if mask
    ]
    assert sum(rollout.num_tokens for rollout in rollouts) == len(own)
    assert torch.allclose(found, torch.tensor(own), atol=1e-5)


def test_an_episode_has_its_turns_its_reward_and_its_groups_prompt(
    tmp_path: Path, tiny_model: Path
) -> None:
    rollouts = sample(tmp_path, GOOD, tiny_model)
    assert len({one.prompt.token_ids for one in rollouts}) == 1
    for one in rollouts:
        assert [turn.replies for turn in one.turns] == [
            ({"role": "user", "content": "3+4="},),
            ({"role": "user", "content": "5+6="},),
            (),
        ]
        assert one.text == one.turns[-1].text
        assert one.prompt.messages == ({"role": "user", "content": "1+2="},)
        assert one.reward is not None
        assert one.reward.value == pytest.approx(len(one.text) / 10)
        assert one.reward.parts == {"length": len(one.text)}
    assert len({one.token_ids for one in rollouts}) > 1


def test_neither_speed_nor_number_of_agents_changes_a_token(
    tmp_path: Path, tiny_model: Path
) -> None:
    fast = sample(tmp_path, GOOD, tiny_model)
    slow = "time.sleep(task['index'] / 5)" + GOOD
    late = sample(tmp_path, slow, tiny_model)
    assert [(one.token_ids, one.logprobs) for one in fast] == [
        (one.token_ids, one.logprobs) for one in late
    ]
    few = sample(tmp_path, slow, tiny_model, env__concurrency=2, env__batch_wait_s=0.0)
    assert [one.token_ids for one in fast] == [one.token_ids for one in few]


def test_the_seed_of_the_task_is_all_that_an_agent_gets(tmp_path: Path, tiny_model: Path) -> None:
    text = GOOD.replace("len(text) / 10", "task['seed'] + task['index']")
    rollouts = sample(tmp_path, text, tiny_model)
    assert [one.reward.value for one in rollouts if one.reward] == [0.0] * 3 + [2.0] * 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sys.exit(3)", "status 3"),
        ("talk('1')\nraise ValueError('odd')", "ValueError: odd"),
        ("print(json.dumps({'reward': 1}))", "without a call"),
        ("talk('1')\nprint('garbage')", "'garbage'"),
        ("talk('1')", "no reward"),
        ("talk('1')\nprint('{\"reward\": NaN}')", "not finite"),
        ("talk('1')\nos.kill(os.getpid(), 9)", "SIGKILL"),
        ("ask([say('1')], key='wrong')", "401"),
        ("talk('1')\nprint('{\"reward\": 1' + '0' * 400 + '}')", "no reward"),
        ("talk('1')\nsys.exit('\\x1b[2Jodd')", "\\x1b[2Jodd"),
        ("talk('1' * 500)", "data.max_prompt_tokens"),
        (f"{OVER_A_LIMIT}    pass\ntalk('2')\nsys.exit(3)", "status 3"),
        (f"{OVER_A_LIMIT}    os.kill(os.getpid(), 9)", "SIGKILL"),
    ],
)
def test_an_agent_that_fails_twice_is_unscored(
    tmp_path: Path, tiny_model: Path, text: str, why: str
) -> None:
    log = tmp_path / "tries"
    text = f"open({str(log)!r}, 'a').write('x')\n{text}"
    (error,) = errors(sample(tmp_path, text, tiny_model, count=1))
    assert why in error
    assert log.read_text() == "x" * 6


@pytest.mark.parametrize("text", ["time.sleep(99)", "talk('1')\ntime.sleep(99)"])
def test_an_agent_that_hangs_is_killed(
    tmp_path: Path, tiny_model: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlcli.envs.agent_sampler.START_LIMIT_S", 1.0)
    begun = time.monotonic()
    (error,) = errors(sample(tmp_path, text, tiny_model, count=1, env__timeout_s=1.0))
    assert "in time" in error or "env.timeout_s" in error
    assert time.monotonic() - begun < 60


def test_an_agent_that_is_slow_in_all_is_killed(tmp_path: Path, tiny_model: Path) -> None:
    text = "for i in range(99):\n    talk(str(i))\n    time.sleep(0.3)"
    changes = {"env__episode_timeout_s": 1.0, "env__max_turns": 99}
    (error,) = errors(sample(tmp_path, text, tiny_model, count=1, **changes))
    assert "env.episode_timeout_s" in error


def test_an_agent_that_is_killed_once_ends_as_if_it_had_not_been(
    tmp_path: Path, tiny_model: Path
) -> None:
    """One agent of each task is killed in the middle, and starts again from the same seed."""
    whole = sample(tmp_path, GOOD, tiny_model)
    once = f"""
try:
    open({str(tmp_path)!r} + f"/killed{{task['index']}}", "x")
except FileExistsError:
    pass
else:
    ask([say("1+2=")])
    os.kill(os.getpid(), 9)
"""
    killed = sample(tmp_path, once + GOOD, tiny_model, env__batch_wait_s=0.1)
    assert (tmp_path / "killed0").exists()
    assert [(one.token_ids, one.reward) for one in killed] == [
        (one.token_ids, one.reward) for one in whole
    ]


def test_an_agent_that_a_limit_stops_is_not_a_failure(tmp_path: Path, tiny_model: Path) -> None:
    rollouts = sample(tmp_path, GOOD, tiny_model, env__max_turns=2)
    for one in rollouts:
        assert one.finish_reason == "turns"
        assert len(one.turns) == 2
        assert one.reward is not None
        assert one.reward.value == 0.0


def test_an_agent_that_ignores_refusals_is_ended(tmp_path: Path, tiny_model: Path) -> None:
    text = f"while True:{OVER_A_LIMIT.replace(chr(10), chr(10) + '    ')}    pass"
    for one in sample(tmp_path, text, tiny_model, count=1, env__max_turns=99):
        assert one.finish_reason in ("length", "turns")
        assert one.reward is not None
        assert one.reward.value == 0.0


def test_turns_of_all_lengths_are_sampled_together(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sampler_of(tmp_path, GOOD, tiny_model) as sampler:
        generate, sizes = sampler.sampler.generate, list[int]()

        def count_rows(prompts: Any, *args: Any, **more: Any) -> Any:
            sizes.append(len(prompts))
            return generate(prompts, *args, **more)

        monkeypatch.setattr(sampler.sampler, "generate", count_rows)
        rollouts = sampler.generate(prompts(2), PARAMS, seed=3)
    assert len({one.turns[0].num_tokens for one in rollouts}) > 1
    assert sizes == [6, 6, 6]


def test_what_an_agent_leaves_printing_ends_with_it(tmp_path: Path, tiny_model: Path) -> None:
    text = "import subprocess\nsubprocess.Popen(['yes'], stdout=sys.stderr)" + GOOD
    for one in sample(tmp_path, text, tiny_model, count=1):
        assert one.reward is not None
        assert one.reward.value is not None


def test_the_reward_function_scores_where_agents_do_not(tmp_path: Path, tiny_model: Path) -> None:
    for one in sample(tmp_path, "talk('1')", tiny_model, env__agent_scores=False):
        assert one.reward is None


def test_agents_have_no_keys_but_those_that_are_named(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_API_KEY", "secret")
    text = "talk('1')\nprint(json.dumps({'reward': float('A_API_KEY' in os.environ)}))"
    for keep, seen in (([], 0.0), (["A_API_KEY"], 1.0)):
        rollouts = sample(tmp_path, text, tiny_model, count=1, env__keep_env=keep)
        assert {one.reward.value for one in rollouts if one.reward} == {seen}


STRAY = """
import subprocess
code = (
    "import os, sys, time; os.setsid(); open(sys.argv[1], 'a').write(f'{os.getpid()} ')\\n"
    "time.sleep(99)"
)
subprocess.Popen([sys.executable, "-S", "-E", "-c", code, PIDS])
while not os.path.exists(PIDS):
    time.sleep(0.01)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_what_an_agent_has_started_ends_with_it(tmp_path: Path, tiny_model: Path) -> None:
    pids = tmp_path / "pids"
    text = f"PIDS = {str(pids)!r}\n{STRAY}\n{GOOD}"
    with sampler_of(tmp_path, text, tiny_model) as sampler:
        sampler.generate(prompts(1), PARAMS, seed=3)
        started = [int(pid) for pid in pids.read_text().split()]
        assert started
        wait_until(lambda: not any(map(is_alive, started)))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_run_that_is_killed_leaves_no_agent(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    own = "open(PIDS, 'a').write(f'{os.getpid()} ')\ntime.sleep(99)"
    target = command(tmp_path, f"PIDS = {str(pids)!r}\n{STRAY}\n{own}")
    code = (
        "import time\n"
        "from rlcli.envs.agents import Agents, command_of\n"
        f"agents = Agents(command_of({target!r}), print, keep_env=(), variables={{}}, log=None)\n"
        "agents.start(0, '{}', url='http://127.0.0.1:9/v1', key='its-own')\n"
        "time.sleep(99)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        started = [int(pid) for pid in pids.read_text().split()]
        assert all(map(is_alive, started))
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    wait_until(lambda: not any(map(is_alive, started)))


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("agent:", "names no command"),
        ("agent:no_such_program x", "no program"),
        ("agent:'open", "quotation"),
        ("verifiers:guess", "env_python"),
    ],
)
def test_an_agent_that_cannot_be_started_is_refused(target: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        find_agent(with_values(Config(), {"env.path": target}))


def test_held_out_tasks_are_not_trained_on(tmp_path: Path) -> None:
    values = {"env.path": command(tmp_path, ""), "env.tasks": 5, "env.val_tasks": 3}
    config = with_values(Config(), values)
    found = find_agent(config).rows(config)
    train, val = (
        [row.extra_info["env_task"]["index"] for row in rows] for rows in (found.train, found.val)
    )
    assert (train, val) == ([0, 1, 2, 3, 4], [5, 6, 7])


def test_files_of_a_command_are_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my agent.py").touch()
    monkeypatch.chdir(tmp_path)
    found = absolute_command("agent:python 'my agent.py' --file=x y")
    monkeypatch.chdir("/")
    assert command_of(found) == ["python", str(tmp_path / "my agent.py"), "--file=x", "y"]


def test_a_command_may_have_quotes(tmp_path: Path) -> None:
    target = command(tmp_path, "") + " 'two words'"
    assert find_agent(with_values(Config(), {"env.path": target})).argv[-1] == "two words"
