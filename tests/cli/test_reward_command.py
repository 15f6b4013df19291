"""`rlcli reward`: a reward tried on data before training, and judges asked once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import ENDLESS_S, Act, Call, JudgeServer

from rlcli.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
NO_SDK = "install the judge extra: pip install -e '.[judge]'"
KEY = "sk-canary-4711"
ROWS = [("3+4?", "7"), ("6*7?", "42"), ("9-1?", "8")]


def rlcli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["reward", *arguments])
    code = ended.value.code
    return code if isinstance(code, int) else 0


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """d.jsonl: three questions with numbers as answers."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "DASHSCOPE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    write("d.jsonl", [
        {"prompt": prompt, "ground_truth": gold, "data_source": "gsm8k"} for prompt, gold in ROWS
    ])  # fmt: skip
    return tmp_path


def grade(call: Call) -> Act:
    """9 where the response holds the reference answer, else 2."""
    gold = re.search(r"<ground_truth-\w+>\n?(.*?)\n?</ground_truth", call.user, re.DOTALL)
    is_right = gold is not None and gold[1] == call.response
    return Act(text=json.dumps({"reason": "checked", "score": 9 if is_right else 2}))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    pytest.importorskip("openai", reason=NO_SDK)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = JudgeServer(grade)
    yield server
    server.close()


def of(judge: JudgeServer) -> list[str]:
    words = ["--rm_api_type", "openai", "--rm_model", "gpt-4o-mini", "--rm_prompt_preset", "math"]
    return [*words, "--use_api_reward", "--rm_base_url", f"{judge.url}/v1"]


def test_a_page_of_80_columns_says_whether_right_and_wrong_are_told_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert rlcli("test", "--data", "d.jsonl") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "reward.fn=rules: 3 rows of d.jsonl"
    assert lines[2].split() == ["own", "answer", "1", "1", "1", "0"]
    assert lines[3].split() == ["another", "row's", "answer", "0", "0", "0", "0"]
    assert lines[-1] == "it tells a row's own answer from another row's."
    assert max(map(len, lines)) <= 80
    assert said.err == ""


def test_json_is_one_object_with_a_score_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert rlcli("test", "--data", "d.jsonl", "--json", "--limit", "2") == 0
    report = json.loads(capsys.readouterr().out)
    promised = {"rows", "scored", "unscored", "mean", "auc", "agreement", "p95_s", "cost_usd",
                "scores", "disagreements"}  # fmt: skip
    assert promised <= report.keys()
    assert report["scores"] == [1.0, 1.0]
    assert report["wrong_scores"] == [0.0, 0.0]
    assert (report["auc"], report["agreement"], report["cost_usd"]) == (1.0, 1.0, 0.0)
    assert report["p95_s"] > 0


def test_a_preset_a_file_and_the_environment_say_what_is_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--preset", "quickstart", "--limit", "5", "--json", "--model", "no/such-model")
    assert rlcli("test", *words, "rollout.n=1", "--algo", "grpo") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["data"].startswith("builtin:sums")
    Path("c.yaml").write_text("reward:\n  fn: exact\n")
    assert rlcli("test", "--config", "c.yaml", "--data", "d.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["reward"] == "reward.fn=exact"


def test_rules_are_tried_without_torch(folder: Path) -> None:
    code = (
        "import sys\n"
        "from rlcli.cli.main import main\n"
        f"try: main(['reward', 'test', '--data', {str(folder / 'd.jsonl')!r}])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=env)


def test_what_looks_wrong_is_listed_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Path("fn.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth):\n"
        "    return 1.0 if '7' in solution_str else 0.0\n"
    )
    assert rlcli("test", "--data", "d.jsonl", "--reward", "fn.py") == 0
    out = capsys.readouterr().out
    assert "  d.jsonl:2: own answer scores 0\n    response: 42\n    ground truth: 42" in out
    assert "a row's own answer is worth no more than another row's" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_rule_that_can_score_no_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert rlcli("test", "--data", "d.jsonl", "--reward", "length", "--json") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "target_length" in said.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--label", "ok"], "Add --responses FILE."),
        (["--responses", "none.jsonl"], "none.jsonl"),
        (["--responses", "r.jsonl"], "has 2 rows, d.jsonl has 3"),
        (["--responses", "r.jsonl", "--label", "okk"], "nearest: ok"),
        (["--save", "no/such/r.jsonl"], "there is no folder"),
        (["--reward", "gsm9k"], "nearest: gsm8k"),
        (["--reward_model", "no/such-model"], "no/such-model"),
        (["reward.fn=none.py"], "there is no file"),
        (["data.train=[e.jsonl]"], "e.jsonl:1 has no ground_truth"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("r.jsonl", [{"response": "7", "ok": 1}, {"response": "8", "ok": 0}])
    write("e.jsonl", [{"prompt": "?", "data_source": "gsm8k"}])
    data = [] if words[0].startswith("data.") else ["--data", "d.jsonl"]
    assert rlcli("test", *data, *words) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert said.out == ""
    assert len(said.err.splitlines()) <= 3


def test_responses_are_held_against_what_people_say(capsys: pytest.CaptureFixture[str]) -> None:
    write("r.jsonl", [
        {"id": "d.jsonl:1", "response": "It is 7.", "ok": "good"},
        {"id": "d.jsonl:1", "response": "It is 8.", "ok": "bad"},
        {"id": "d.jsonl:2", "response": "Forty-two", "ok": "good"},
    ])  # fmt: skip
    words = ("--data", "d.jsonl", "--responses", "r.jsonl", "--label", "ok")
    assert rlcli("test", *words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scores"] == [1.0, 0.0, 0.0]
    assert report["auc"] == 0.75
    assert report["agreement"] == pytest.approx(2 / 3)
    assert [row["response"] for row in report["disagreements"]] == ["Forty-two"]
    assert report["notes"] == ["3 responses joined to d.jsonl by id."]
    assert rlcli("test", *words) == 0
    out = capsys.readouterr().out
    assert "agreement 66.67%: label 1 gets 0.5 or more, label 0 less" in out
    assert "  d.jsonl:2: response scores 0, label 1\n    response: Forty-two" in out


def test_rollouts_of_a_run_are_scored_as_the_run_did(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--preset", "quickstart", "--max_steps", "1", "--output_dir", "run",
              "data.val=[]", "train.prompts_per_step=8", "train.mini_batch_prompts=8"])  # fmt: skip
    assert not ended.value.code
    capsys.readouterr()
    (file,) = (folder / "run/rollouts").glob("step_*.jsonl")
    assert rlcli("test", "--responses", str(file), "--label", "reward", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert report["scores"] == [row["reward"] for row in rows]
    assert report["agreement"] == 1.0
    assert "by id." in report["notes"][-1]


def test_saved_responses_can_be_tried_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlcli("test", "--data", "d.jsonl", "--save", "all.jsonl") == 0
    capsys.readouterr()
    saved = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["score"]) for row in saved] == [("right", 1.0)] * 3 + [
        ("wrong", 0.0)
    ] * 3
    assert rlcli("test", "--responses", "all.jsonl", "--label", "score", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["auc"], report["agreement"]) == (1.0, 1.0)


def test_a_judge_is_repeated_priced_and_announced(
    judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlcli("test", "--data", "d.jsonl", *of(judge), "--json") == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    # the probe, three rows right and wrong, the three right ones again
    assert len(judge.calls) == 1 + 6 + 3
    assert report["mean"] == pytest.approx(8 / 9)
    assert report["wrong_mean"] == pytest.approx(1 / 9)
    assert report["repeatability"] == {"responses": 3, "times": 2, "equal": 1.0, "largest": 0.0}
    # 100 tokens in, 20 out at 0.15 and 0.60 dollars a million: 27 millionths a call
    assert report["cost_usd"] == pytest.approx(9 * 27e-6)
    assert report["cost_per_1000_usd"] == pytest.approx(0.027)
    assert re.search(r"note: the judge is asked up to 9 times, about \$0\.00\d\d\.", said.err)
    assert KEY not in said.out + said.err


def test_a_judge_that_says_otherwise_the_second_time_is_found_out(
    judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.behave = lambda call: Act(text=json.dumps({"reason": "", "score": 8 - call.attempt}))
    words = ("reward.judge.cache=verdicts.sqlite", "--repeat", "3")
    for _ in range(2):  # verdicts that are kept are not asked again, and repeated all the same
        assert rlcli("test", "--data", "d.jsonl", *of(judge), *words, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert report["repeatability"]["equal"] == 0.0
        assert report["repeatability"]["times"] == 3
    assert report["repeatability"]["largest"] > 0
    assert "reward.judge.votes=3" in report["verdicts"][-1]


def test_a_spent_budget_ends_with_75_and_what_there_is(
    judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.behave = lambda call: Act(text=grade(call).text, tokens=(9000, 1000))
    write("d.jsonl", [
        {"prompt": "?", "ground_truth": str(gold), "data_source": "gsm8k"} for gold in range(40)
    ])  # fmt: skip
    # 9,000 in and 1,000 out cost 1.95 thousandths of a dollar, and at most 2,048 are made
    words = ("--max_judge_cost", "0.02", "--rm_concurrency", "1", "--json")
    assert rlcli("test", "--data", "d.jsonl", *of(judge), *words) == 75
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert 0 < report["scored"] < 40
    assert report["scores"][-1] is None
    assert 0 < report["cost_usd"] <= 0.02
    assert "has spent $" in said.err
    assert "responses were scored before that" in said.err
    assert "--resume" not in said.err


def test_ctrl_c_prints_what_there_is_and_ends_with_130(
    judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def behave(call: Call) -> Act:
        if len(judge.calls) == 5:  # the answers to those before have been taken
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return Act(text=grade(call).text, latency_s=ENDLESS_S if len(judge.calls) > 4 else 0.0)

    judge.behave = behave
    words = ("--rm_concurrency", "1", "--json")
    # a run trained in this process has put its own in place
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert rlcli("test", "--data", "d.jsonl", *of(judge), *words) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    report = json.loads(capsys.readouterr().out)
    # after the probe: row 1 right and wrong, row 2 right
    assert report["scores"] == [pytest.approx(8 / 9), pytest.approx(8 / 9), None]
    assert report["is_whole"] is False


def test_a_reward_model_has_no_pass_mark_and_gets_its_scale_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from reward_models import save_classifier

    model = save_classifier(tmp_path / "rm", "Llama")
    words = ["--data", "d.jsonl", "--reward_model", str(model), "train.device=cpu"]
    assert rlcli("test", *words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    scores = report["scores"] + report["wrong_scores"]
    mean = sum(scores) / 6
    assert report["normalize"]["mean"] == pytest.approx(mean)
    variance = sum((score - mean) ** 2 for score in scores) / 6
    assert report["normalize"]["std"] == pytest.approx(variance**0.5)
    assert report["agreement"] is None
    assert 0 <= report["auc"] <= 1
    scale = report["normalize"]
    fixed = [f"reward.normalize_{name}={scale[name]}" for name in ("mean", "std")]
    assert rlcli("test", *words, "reward.normalize=fixed", *fixed, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert sum(again["scores"] + again["wrong_scores"]) == pytest.approx(0.0, abs=1e-4)
    assert again["normalize"] == pytest.approx(report["normalize"])


def test_a_mix_is_tried_as_a_run_scores_it(
    judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = ["reward.composite=true", "reward.weights={judge: 0.5, rule_score: 0.5}"]
    assert rlcli("test", "--data", "d.jsonl", *of(judge), *mix, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mean"] == pytest.approx((1 + 8 / 9) / 2)
    assert report["wrong_mean"] == pytest.approx((0 + 1 / 9) / 2)
    # repeated: the judge alone
    assert report["repeatability"]["equal"] == 1.0


def test_chinese(judge: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert rlcli("test", "--data", "d.jsonl", "--lang", "zh") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "能区分一行自己的答案和别行的答案。"
    assert rlcli("test", "--help", "--lang", "zh") == 0
    assert "试用" in capsys.readouterr().out


# Judges asked once.


def test_a_judge_is_asked_once_and_three_bad_answers_more(
    judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.behave = lambda call: Act(text=grade(call).text, model="gpt-4o-mini-2024-07-18")
    words = [word for word in of(judge) if word != "--use_api_reward"]
    assert rlcli("judge-check", *words, "--json") == 0
    said = capsys.readouterr()
    (report,) = json.loads(said.out)["judges"]
    assert len(judge.calls) == 4
    assert report["answered_by"] == "gpt-4o-mini-2024-07-18"
    assert (report["key"], report["score"], report["scale"]) == ("OPENAI_API_KEY", 9, [1, 10])
    assert report["usd_per_1000_calls"] == pytest.approx(0.027)
    assert report["canaries"] == pytest.approx([1 / 9] * 3)
    assert KEY not in said.out + said.err
    assert rlcli("judge-check", *words, "--no-canaries") == 0
    said = capsys.readouterr()
    assert len(judge.calls) == 5
    assert said.out.splitlines()[0] == (
        f"openai gpt-4o-mini at {judge.url}/v1, key from OPENAI_API_KEY"
    )
    assert "9 on 1 to 10" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_every_judge_of_a_panel_is_told_of_and_a_wrong_key_is_refused(
    judge: JudgeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def behave(call: Call) -> Act:
        error = {"error": {"message": f"bad key {KEY}", "code": "invalid_api_key"}}
        return Act(status=401, error=error) if call.body["model"] == "b" else grade(call)

    judge.behave = behave
    assert rlcli("judge-check", *of(judge), "reward.judge.panel=[b]") == 2
    said = capsys.readouterr()
    assert "9 on 1 to 10" in said.out
    assert f"openai b at {judge.url}/v1" in said.out
    assert "export OPENAI_API_KEY=your_api_key" in said.err
    assert KEY not in said.out + said.err
    monkeypatch.delenv("OPENAI_API_KEY")
    assert rlcli("judge-check", *of(judge)) == 2
    assert "OPENAI_API_KEY is not set" in capsys.readouterr().err


def test_a_judge_that_pays_for_anything_is_told(
    judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.behave = lambda call: Act(text='{"reason": "", "score": 10}')
    assert rlcli("judge-check", *of(judge)) == 0
    assert "gpt-4o-mini gives 1.00 of 1 to answers that are known" in capsys.readouterr().err
    judge.behave = lambda call: Act(text='{"reason": "", "score": 1}')
    assert rlcli("judge-check", *of(judge)) == 0
    assert "gpt-4o-mini gives 1 to a right answer, on a scale of 1 to" in capsys.readouterr().err
