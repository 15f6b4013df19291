"""Runs that credit turns with their own rewards, and what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from env_runs import COUNTING, LOOKUP, rollouts, same, train, weights, write_count
from small_runs import metrics

TRL = '''\
class Table:
    """TRL's form."""

    def reset(self, **row):
        return "k5="

    def look(self, k: int) -> str:
        """Look up.

        Args:
            k: The key.
        """
        return "7"

    def get_reward(self) -> float:
        return 1.0
'''
BY_TURN = ("env.credit=turn",)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_count()
    Path("table.py").write_text(TRL)


@pytest.mark.nightly
def test_credit_by_turn_learns_otherwise() -> None:
    """The same rollouts in the first step, other weights after it; and the same again."""
    assert train(*COUNTING, "train.max_steps=1", out="whole") == 0
    assert train(*COUNTING, "train.max_steps=1", *BY_TURN, out="turn") == 0
    assert train(*COUNTING, "train.max_steps=1", *BY_TURN, out="again") == 0
    assert rollouts("whole") == rollouts("turn")
    assert max(row["turns"] for row in rollouts("turn")) == 3
    assert not same(weights("whole"), weights("turn"))
    assert same(weights("turn"), weights("again"))


@pytest.mark.parametrize(
    "words",
    [
        ("--algo", "reinforce_plus_plus", "algorithm.gamma_turn=0.5"),
        ("--algo", "ppo", "rollout.n=2", "algorithm.gamma_turn=0.5"),
        ("--algo", "rloo"),
        ("--algo", "reinforce_plus_plus_baseline"),
    ],
    ids=lambda words: words[1],
)
def test_every_estimator_that_credits_turns_trains(words: tuple[str, ...]) -> None:
    assert train(*COUNTING, *words, "data.val_limit=1", "run.eval_every=-1", *BY_TURN) == 0
    assert all(row["grad_norm"] > 0 for row in metrics() if "grad_norm" in row)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((*COUNTING, "--algo", "opo", *BY_TURN), "compares whole episodes"),
        ((*COUNTING, "--algo", "remax", *BY_TURN), "compares whole episodes"),
        ((*COUNTING, "--algo", "gmpo", *BY_TURN), "weighs a whole rollout by one"),
        ((*COUNTING, "algorithm.dynamic_sampling=true", *BY_TURN), "they still teach"),
        ((*LOOKUP, *BY_TURN), "tools give none"),
        (
            ("--preset", "quickstart", "--env", "table.py:Table", *BY_TURN),
            "gives one for the whole episode",
        ),
    ],
)
def test_what_cannot_credit_turns_is_refused(
    words: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*words) == 2
    assert why in capsys.readouterr().err.replace("\n", " ")
    assert not Path("run/checkpoints").exists()


def test_credit_without_an_environment_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--preset", "quickstart", *BY_TURN, "--dry-run") == 0
    assert "not used: env.credit" in capsys.readouterr().out
