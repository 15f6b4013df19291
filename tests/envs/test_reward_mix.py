"""Rewards of episodes: what counts as a pass, failures, mixes, and what judges and models read."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from env_runs import COUNTING, LOOKUP, command, rollouts, train, write_count
from judge_server import Act, JudgeServer
from small_runs import metrics

from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.envs.measures import measure_episodes
from rlcli.envs.scorer import EpisodeScorer, accuracy_of, with_dialogue
from rlcli.rewards.base import StatelessScorer, text_rollout
from rlcli.rewards.chat_roles import with_known_roles
from rlcli.types import Prompt, Reward, Rollout, Turn

QUESTION = Prompt(id="q", messages=({"role": "user", "content": "k5?"},), token_ids=(1,))
CALL = Turn(
    text="[look(k=5)]",
    num_tokens=3,
    finish_reason="stop",
    replies=({"role": "tool", "name": "look", "content": "7"},),
    num_reply_tokens=2,
)
ANSWER = Turn(text="It is 7.", num_tokens=4, finish_reason="stop")


def episode(reward: Reward | None = None) -> Rollout:
    return replace(text_rollout(QUESTION, "It is 7."), turns=(CALL, ANSWER), reward=reward)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_count()


def test_a_reward_beyond_0_to_1_has_no_pass_rate_without_a_mark() -> None:
    rewards = [Reward(value=value) for value in (0.2, None, 3.0)]
    config = Config()
    assert accuracy_of(config, rewards, scored_by_env=True) is None
    marked = with_values(config, {"env.pass_mark": 2.5})
    assert accuracy_of(marked, rewards, scored_by_env=True) == [0.0, None, 1.0]
    within = [Reward(value=value) for value in (0.2, 0.5, 1.0)]
    assert accuracy_of(config, within, scored_by_env=True) == [0.0, 1.0, 1.0]


def test_a_run_without_a_pass_mark_reports_the_mean_reward_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ("train.max_steps=1", "env.args.turns=1")
    text = Path("count.py").read_text()
    Path("count.py").write_text(text.replace("good * len(reply.text)", "-2.0"))
    assert train(*COUNTING, *few, out="run") == 0
    found = [row for row in metrics() if "eval/rows" in row]
    assert all("eval/pass@1" not in row and row["eval/reward_mean"] == -2.0 for row in found)
    capsys.readouterr()
    assert command("eval", "run") == 0
    assert "env.pass_mark" in capsys.readouterr().out.replace("\n", " ")


def test_eval_refuses_data_and_a_reward_that_the_environment_leaves_no_room_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(*COUNTING, "train.max_steps=1", "run.eval_every=-1") == 0
    for words, why in (
        (("--data", "builtin:sums_val"), "makes its tasks"),
        (("--reward", "exact"), "gives the reward"),
    ):
        assert command("eval", "run", *words) == 2
        assert why in capsys.readouterr().err.replace("\n", " ")
    assert command("eval", "run", "--json", "--limit", "2") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 2
    assert report["episode/turns_mean"] > 1


def test_an_environment_that_fails_is_not_scored_again(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("count.py").read_text()
    Path("count.py").write_text(text.replace("self.left -= 1", "raise ValueError('broken')"))
    assert train(*COUNTING) != 0
    said = capsys.readouterr()
    assert "scoring" not in said.out + said.err
    assert "the environment failed in 24 of 24 episodes" in (said.out + said.err).replace("\n", " ")
    assert "broken" in said.out + said.err


def test_only_failures_of_the_environment_are_counted_as_such() -> None:
    scored = [episode(), episode(Reward(value=None, error="the environment failed"))]
    rewards = [Reward(value=None, error="the judge did not answer"), scored[1].reward]
    assert measure_episodes(scored, rewards)["env/failed"] == 1.0  # type: ignore[arg-type]


def test_a_judge_reads_the_whole_dialogue_and_scores_the_last_answer() -> None:
    seen = with_dialogue(episode())
    assert [message["role"] for message in seen.prompt.messages] == ["user", "assistant", "tool"]
    assert seen.text == "It is 7."
    plain = with_known_roles(seen.prompt.messages)
    assert [message["role"] for message in plain] == ["user", "assistant", "user"]
    two = [*seen.prompt.messages, {"role": "tool", "content": "8"}]
    assert with_known_roles(two)[-1] == {"role": "user", "content": "7\n\n8"}


class Asked(StatelessScorer):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        self.rollouts.append(rollout)
        future: Future[Reward] = Future()
        future.set_result(Reward(value=1.0))
        return future

    def can_recover(self, unscored: Reward) -> bool:
        return True

    def close(self) -> None: ...


def test_nothing_is_asked_about_an_episode_whose_environment_failed() -> None:
    inner = Asked()
    scorer = EpisodeScorer(inner)
    failed = Reward(value=None, error="broken")
    assert scorer.submit(episode(failed)).result() == failed
    assert not inner.rollouts
    assert scorer.submit(episode(Reward(value=3.0))).result().value == 1.0
    assert len(inner.rollouts) == 1


MIX = ("reward.weights={env: 1.0, rule_score: 10}", "--reward", "lines.py:lines")
LINES = "def lines(messages, response):\n    return float(len(messages))\n"


def test_the_environments_reward_is_mixed_with_another(capsys: pytest.CaptureFixture[str]) -> None:
    """The function counts the messages before the last answer: 5 where there are 3 turns."""
    Path("lines.py").write_text(LINES)
    assert train(*COUNTING, *MIX, "env.credit=turn", "train.max_steps=1") == 0
    rows = rollouts()
    assert {row["parts"]["rule_score"] for row in rows} >= {5.0}
    for row in rows:
        assert row["reward"] == pytest.approx(row["parts"]["env"] + 10 * row["parts"]["rule_score"])
        assert row["parts"]["rule_score"] == 2 * row["turns"] - 1
    capsys.readouterr()
    assert command("eval", "run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["unscored"] == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((*COUNTING, "--reward", "exact"), "or mix them: reward.weights={env: 0.7, rule_score"),
        ((*LOOKUP, "reward.weights={env: 1, rule_score: 1}"), "gives no reward"),
        (
            ("--preset", "quickstart", "reward.weights={env: 1, rule_score: 1}"),
            "there is no environment",
        ),
    ],
)
def test_a_mix_that_cannot_be_is_refused(
    words: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*words) == 2
    assert why in capsys.readouterr().err.replace("\n", " ")


def test_a_judge_is_sent_the_whole_dialogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fake judge: the question, the call and the tool's answer come before the response."""
    pytest.importorskip("openai", reason="install the judge extra: pip install -e '.[judge]'")
    monkeypatch.setenv("DASHSCOPE_API_KEY", "none")
    server = JudgeServer(lambda call: Act())
    words = ("--use_api_reward", "--rm_base_url", server.url, "train.max_steps=1")
    try:
        assert train(*LOOKUP, *words, "run.eval_every=-1", "data.val_limit=1") == 0
        asked = [call.user for call in server.calls]
    finally:
        server.close()
    answered = [row for row in rollouts() if row["turns"] == 2]
    assert answered
    for row in answered:
        call, reply, _ = (message["content"] for message in row["dialogue"])
        shown = f"user: {row['prompt']}\n\nassistant: {call}\n\ntool: {reply}"
        assert any(shown in text and row["response"] in text for text in asked)
