"""A reward tried whole: handed over, scored, and judged by the numbers."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from rlcli.config.resolver import resolve
from rlcli.data.convert import convert
from rlcli.data.readers import Row
from rlcli.errors import Paused
from rlcli.tools.reward_test.feed import NOT_SCORED, Feed
from rlcli.tools.reward_test.planning import Request, plan_trial
from rlcli.tools.reward_test.report import summarize
from rlcli.tools.reward_test.rows import Case
from rlcli.tools.reward_test.running import run_trial
from rlcli.tools.reward_test.verdicts import verdicts
from rlcli.types import Reward, Rollout


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# Handing over.


class Slow:
    """A scorer that ends what it is given when it is told to."""

    def __init__(self, capacity: int) -> None:
        self.waiting: list[tuple[Rollout, Future[Reward]]] = []
        self.most = 0
        self.capacity = capacity

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        future: Future[Reward] = Future()
        self.waiting.append((rollout, future))
        self.most = max(self.most, len(self.waiting))
        if len(self.waiting) == self.capacity:
            threading.Timer(0.01, self.release).start()
        return future

    def release(self) -> None:
        """Backwards: rewards must come back in the order asked for."""
        for rollout, future in [self.waiting.pop() for _ in range(len(self.waiting))]:
            if rollout.text == "end":
                future.set_exception(Paused("no money"))
            else:
                future.set_result(Reward(value=float(rollout.text)))


def given_cases(*texts: str) -> list[Case]:
    rows = [
        Row(id=f"a:{at}", prompt="?", ground_truth=str(at), data_source="s", extra_info={})
        for at in range(len(texts))
    ]
    return [
        Case(row=row, response=text, kind="given") for row, text in zip(rows, texts, strict=True)
    ]


def test_as_many_are_in_flight_as_are_worked_on_and_rewards_keep_their_order() -> None:
    scorer: Any = Slow(2)
    told: list[tuple[str, int, int]] = []
    feed = Feed(scorer, window=2, progress=lambda *seen: told.append(seen))
    rewards = feed.score("scoring", given_cases("1", "2", "3", "4"))
    assert [reward.value for reward in rewards] == [1, 2, 3, 4]
    assert scorer.most == 2
    assert told == [("scoring", done, 4) for done in (1, 2, 3, 4)]
    assert (len(feed.seconds), feed.end) == (4, None)


def test_what_was_scored_before_the_end_is_kept_and_nothing_is_asked_after() -> None:
    scorer: Any = Slow(2)
    feed = Feed(scorer, window=2, progress=lambda *_: None)
    rewards = feed.score("scoring", given_cases("1", "2", "end", "4", "5"))
    assert [reward.value for reward in rewards[:2]] == [1, 2]
    assert rewards[2] == rewards[4] == NOT_SCORED
    assert str(feed.end) == "no money"
    assert feed.score("again", given_cases("1")) == [NOT_SCORED]
    assert len(feed.seconds) == 3


class ProcessExited(Slow):
    """A service that answers the first responses, then none."""

    def __init__(self, *, answers: int) -> None:
        super().__init__(1)
        self.left, self.asked = answers, 0

    def submit(self, rollout: Any, *, before: Any = None) -> Future[Reward]:
        self.asked += 1
        self.left -= 1
        future: Future[Reward] = Future()
        lost = Reward(value=None, error="no answer", is_outage=True)
        future.set_result(Reward(value=1.0) if self.left >= 0 else lost)
        return future


@pytest.mark.parametrize(("window", "least"), [(1, 5), (8, 8)])
def test_a_service_that_is_gone_ends_a_trial_and_what_was_scored_is_kept(
    window: int, least: int
) -> None:
    scorer: Any = ProcessExited(answers=3)
    feed = Feed(scorer, window=window, progress=lambda *_: None)
    rewards = feed.score("scoring", given_cases(*map(str, range(1000))))
    assert [reward.value for reward in rewards[:3]] == [1.0] * 3
    assert isinstance(feed.end, Paused)
    assert "no answer" in str(feed.end)
    assert scorer.asked <= 3 + least + window


def test_faults_of_single_responses_do_not_end_a_trial() -> None:
    scorer: Any = ProcessExited(answers=0)
    feed = Feed(scorer, window=1, progress=lambda *_: None)
    for _ in range(3):
        feed.score("scoring", given_cases("1", "2", "3", "4"))
        scorer.left = 1
    assert feed.end is None


# Whole trials.


def trial(tmp_path: Path, *, trial: Request | None = None, **settings: Any) -> dict[str, Any]:
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    resolved = resolve(flags={}, overrides=overrides, files=[], env={})
    plan = plan_trial(resolved, trial or Request(), {})
    done = run_trial(plan, env={}, progress=lambda *_: None)
    report = summarize(plan, done)
    return report | {"verdicts": verdicts(report)}


@pytest.mark.slow
def test_gsm8k_every_true_answer_scores_1_and_no_other_rows_does(
    shared_data: Path, tmp_path: Path
) -> None:
    convert("gsm8k", shared_data, tmp_path, hub="hf")
    files = [str(tmp_path / f"{split}.parquet") for split in ("train", "test")]
    report = trial(tmp_path, data__train=files)
    assert report["rows"] == report["scored"] == 8792
    assert report["mean"] == report["min"] == 1.0
    assert report["wrong_rows"] == 8792
    assert report["wrong_mean"] <= 0.005
    assert report["auc"] >= 0.9975
    assert report["unscored"] == report["wrong_unscored"] == report["timeouts"] == 0
    assert report["verdicts"] == ["it tells a row's own answer from another row's."]


def test_an_answer_that_the_rule_calls_the_same_gives_way_to_a_third(tmp_path: Path) -> None:
    golds = [r"\frac{1}{2}", "0.5", "7"]
    data = write(tmp_path / "d.jsonl", [
        {"prompt": "?", "ground_truth": gold, "data_source": "math"} for gold in golds
    ])  # fmt: skip
    report = trial(tmp_path, data__train=data)
    assert report["equal_answers"] == 1
    assert report["wrong_scores"] == [0.0, 0.0, 0.0]
    assert report["agreement"] == 1.0


FN = "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    "


def trial_of(tmp_path: Path, body: str, golds: list[str], **settings: Any) -> dict[str, Any]:
    (tmp_path / "fn.py").write_text(FN + body)
    data = write(tmp_path / "d.jsonl", [{"prompt": "?", "ground_truth": gold} for gold in golds])
    settings = {"reward__fn": tmp_path / "fn.py", "data__train": data} | settings
    return trial(tmp_path, **settings)


def test_a_reward_that_lets_everything_pass_is_found_out(tmp_path: Path) -> None:
    report = trial_of(tmp_path, "return 1.0", ["1", "2", "3"])
    assert (report["auc"], report["agreement"], report["equal_answers"]) == (0.5, 0.5, 0)
    assert [row["kind"] for row in report["disagreements"]] == ["wrong"] * 3
    assert report["verdicts"] == [
        "every response gets the same score, 1, so nothing can be learned from it."
    ]


def test_where_all_rows_have_one_answer_there_is_nothing_to_compare(tmp_path: Path) -> None:
    report = trial_of(tmp_path, "return 1.0", ["1", "1.0"])
    assert (report["wrong_rows"], report["auc"]) == (0, None)
    expected = "there is no other answer to compare with: all rows have the same one."
    assert report["verdicts"] == [expected]


def test_a_reward_that_reads_the_answer_the_wrong_way_round_is_found_out(tmp_path: Path) -> None:
    report = trial_of(tmp_path, "return float(solution_str != ground_truth)", ["1", "2"])
    assert report["auc"] == report["agreement"] == 0.0
    expected = "a row's own answer is worth no more than another row's: nothing can be learnt."
    assert report["verdicts"] == [expected]


def test_errors_and_timeouts_are_counted_and_never_0(tmp_path: Path) -> None:
    body = (
        "import time\n"
        "    if solution_str == ground_truth == '2': raise ValueError('not two')\n"
        "    if solution_str == ground_truth == '3': time.sleep(900)\n"
        "    return float(solution_str == ground_truth)"
    )
    golds = ["1", "2", "3", "4"]
    # on a busy machine even what is quick may take long
    for timeout_s in (0.2, 2.0, 20.0):
        given = {"reward__timeout_s": timeout_s, "reward__workers": 2}
        report = trial_of(tmp_path, body, golds, **given)
        if report["timeouts"] == 1:
            break
    assert report["scores"] == [1.0, None, None, 1.0]
    assert (report["scored"], report["unscored"], report["timeouts"]) == (2, 2, 1)
    assert report["mean"] == 1.0
    assert {entry["error"] for entry in report["errors"]} == {
        "ValueError: not two (fn.py:3)",
        f"took longer than {timeout_s:g} s (reward.timeout_s)",
    }
    assert "50% of the responses are unscored: a run would stop at that." in report["verdicts"]


def test_repeating_finds_a_reward_that_rolls_dice(tmp_path: Path) -> None:
    # every process is at its own count: one worker gives 0.1, 0.2, 0.3, ...
    body = "compute_score.n = getattr(compute_score, 'n', 0) + 1; return compute_score.n / 100"
    report = trial_of(tmp_path, body, ["1", "2"], reward__workers=1)
    assert report["repeatability"] is None
    (tmp_path / "again").mkdir()
    report = trial_of(
        tmp_path / "again", body, ["1", "2"], reward__workers=1, trial=Request(repeat=3)
    )
    again = report["repeatability"]
    # right, wrong, right, wrong; then both right ones twice: 1 5 7 and 3 6 8
    assert again["largest"] == pytest.approx(0.06)
    assert (again["responses"], again["times"], again["equal"]) == (2, 3, 0)


def test_there_is_a_process_for_every_core_unless_it_is_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def workers(*overrides: str) -> int:
        resolved = resolve(flags={}, overrides=[*overrides], files=[], env={})
        return plan_trial(resolved, Request(), {}).config.reward.workers

    monkeypatch.setattr("psutil.cpu_count", lambda logical: 3)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert workers() == 3
    assert workers("reward.workers=2") == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert workers() == 1
    few = write(
        tmp_path / "d.jsonl", [{"prompt": "?", "ground_truth": "1", "data_source": "exact"}]
    )
    assert workers(f"data.train={few}") == 1


def labelled(tmp_path: Path, labels: list[Any], scores: list[float]) -> dict[str, Any]:
    (tmp_path / "fn.py").write_text(FN + "return float(solution_str)")
    file = write(tmp_path / "r.jsonl", [
        {"prompt": "?", "response": str(score), "ok": label}
        for label, score in zip(labels, scores, strict=True)
    ])  # fmt: skip
    request = Request(responses=file, label="ok")
    return trial(tmp_path, trial=request, reward__fn=tmp_path / "fn.py")


def test_binary_labels_give_auc_agreement_and_what_they_disagree_on(tmp_path: Path) -> None:
    report = labelled(tmp_path, ["good", "bad", "good", "bad"], [0.9, 0.6, 0.2, 0.1])
    assert report["agreement"] == 0.5
    assert report["auc"] == 0.75
    assert report["labelled"] == 4
    # farthest from its label first
    assert [row["response"] for row in report["disagreements"]] == ["0.2", "0.6"]
    assert report["disagreements"][0]["label"] == 1.0
    assert report["verdicts"] == ["it follows the labels, and is often wrong."]


def test_labels_on_a_scale_are_ranked(tmp_path: Path) -> None:
    report = labelled(tmp_path, [1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert (report["auc"], report["agreement"]) == (1.0, None)
    assert report["spearman"] == pytest.approx(1.0)
    assert report["disagreements"] == []
    report = labelled(tmp_path, [1, 2, 3, 4, 5], [0.5, 0.2, 0.3, 0.4, 0.1])
    # the first and the last are four of five places off
    assert sorted(row["response"] for row in report["disagreements"]) == ["0.1", "0.5"]
    assert report["verdicts"] == ["it goes against the labels. Is a high label a bad response?"]


def test_labels_that_are_all_alike_say_nothing(tmp_path: Path) -> None:
    report = labelled(tmp_path, [1, 1], [0.9, 0.8])
    assert (report["auc"], report["spearman"]) == (None, None)
    assert report["verdicts"][0].startswith("the labels are all alike")


def test_the_order_of_rows_changes_no_number(tmp_path: Path) -> None:
    pairs = [("good", 0.9), ("bad", 0.6), ("good", 0.2), ("bad", 0.1), ("good", 0.5)]
    found = set()
    for seed in range(3):
        random.Random(seed).shuffle(pairs)
        report = labelled(tmp_path, [p[0] for p in pairs], [p[1] for p in pairs])
        found.add((report["auc"], report["agreement"], report["mean"]))
    assert len(found) == 1
