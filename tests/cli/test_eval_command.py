"""`rlcli eval`: runs, their steps and models, measured the way their own evaluation does."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, JudgeServer

from rlcli.cli.main import main

SMALL = ["--preset", "quickstart", "train.prompts_per_step=8", "train.mini_batch_prompts=8",
         "rollout.val_n=2", "run.save_every=1", "train.max_steps=2", "train.lr=3e-3",
         "run.seed=5"]  # fmt: skip
UNSTABLE = ("wall_s", "tokens_per_s")
NOTE = "note: the tokenizer has no chat template: prompts go in as raw text"
SUMS = ["--data", "builtin:sums_val"]


def rlcli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    code = ended.value.code
    return code if isinstance(code, int) else 0


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert rlcli("eval", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with full weights and one with an adapter, two steps each."""
    folder = tmp_path_factory.mktemp("eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, extra in (("full", []), ("lora", ["lora.rank=4"])):
            assert rlcli("train", *SMALL, "--run_name", name, *extra) == 0
    return folder


@pytest.fixture
def cwd(outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(outputs)
    capsys.readouterr()
    return outputs


def test_the_built_in_model_adds_about_a_third_of_the_sums(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = report(capsys, "builtin:quickstart", *SUMS, "--k", "8,1")
    assert found["rows"] == 200
    assert found["k"] == [1, 8]
    assert found["n"] == 8
    assert found["temperature"] == 1.0
    assert found["pass@1"] == pytest.approx(0.30, abs=0.03)
    assert found["pass@8"] > 0.9
    assert found["pass@1"] == pytest.approx(found["reward_mean"])
    low, high = found["ci95"]["pass@1"]
    assert 0.2 < low < found["pass@1"] < high < 0.4
    assert found["counted"] == {"pass@1": 200, "pass@8": 200}
    assert found["unscored"] == 0
    assert found["model"] == "builtin:quickstart"
    again = report(capsys, "builtin:quickstart", *SUMS, "--k", "1,8")
    assert {k: v for k, v in again.items() if k not in UNSTABLE} == {
        k: v for k, v in found.items() if k not in UNSTABLE
    }


def test_greedy_and_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert rlcli("eval", "builtin:quickstart", *SUMS, "--limit", "20") == 0
    seen = capsys.readouterr()
    assert "builtin:quickstart: 20 prompts, n=1, temperature 0, seed 0" in seen.out
    assert "95 % CI" in seen.out
    assert "20 of 20 prompts" in seen.out
    assert max(map(len, seen.out.splitlines())) <= 80
    assert seen.err.splitlines() == [NOTE]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_step_gives_the_numbers_of_the_runs_own_evaluation(
    cwd: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (cwd / "outputs" / name / "metrics.jsonl").read_text().splitlines()
    own = [row for row in map(json.loads, lines) if "eval/pass@1" in row][-1]
    assert own["step"] == 2
    found = report(capsys, name, "--step", "2", "--n", "2")
    assert found["model"] == f"outputs/{name}/checkpoints/step_2"
    assert found["seed"] == 5
    assert found["pass@1"] == pytest.approx(own["eval/pass@1"], abs=1e-12)
    assert found["reward_mean"] == pytest.approx(own["eval/reward_mean"], abs=1e-12)
    assert found["response_length_mean"] == pytest.approx(own["eval/response_length_mean"])
    before = report(capsys, name, "--step", "1", "--n", "2")
    assert before["pass@1"] != found["pass@1"]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_final_model_is_that_of_the_last_step(
    cwd: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    final = report(capsys, f"outputs/{name}", "--limit", "60")
    assert final["model"] == f"outputs/{name}/checkpoints/final"
    last = report(capsys, f"outputs/{name}/checkpoints/step_2", "--limit", "60")
    # the final model is saved in the dtype it came in
    assert final["pass@1"] == pytest.approx(last["pass@1"], abs=0.05)


def test_a_model_folder_is_no_run(
    cwd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cwd / "cache"))
    assert rlcli("ckpt", "export", "lora", "outputs/merged", "--merge-lora") == 0
    assert rlcli("ckpt", "export", "lora", "outputs/adapter") == 0
    capsys.readouterr()
    found = report(capsys, "outputs/merged", *SUMS, "--limit", "60")
    own = report(capsys, "lora", "--limit", "60")
    assert found["pass@1"] == pytest.approx(own["pass@1"], abs=0.05)
    adapter = report(capsys, "outputs/adapter", *SUMS, "--limit", "60")
    assert adapter["pass@1"] == pytest.approx(own["pass@1"], abs=0.05)


def test_the_link_of_the_latest_run_can_be_evaluated(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {
        report(capsys, target, "--limit", "2")["model"]
        for target in ("latest", "outputs/checkpoints", "./outputs/checkpoints/final")
    }
    assert models == {"outputs/lora/checkpoints/final"}


def test_a_reward_of_ones_own_its_unscored_responses_and_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    if int(ground_truth) % 2:\n"
        "        raise ValueError('odd')\n"
        "    return float(solution_str == ground_truth)\n"
    )
    own = ["--reward", "own.py:compute_score", "--k", "2", "--limit", "20"]
    found = report(capsys, "builtin:quickstart", *SUMS, *own, "--save", "all.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    odd = sum(int(row["ground_truth"]) % 2 for row in rows)
    assert len(rows) == 40
    assert 0 < odd == found["unscored"] == sum(row["reward"] is None for row in rows)
    assert found["counted"] == {"pass@2": (40 - odd) // 2}
    assert rows[0]["id"] == rows[1]["id"] != rows[2]["id"]


def test_a_run_with_a_judge_is_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai", reason="install the judge extra: pip install -e '.[judge]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    server = JudgeServer(lambda call: Act())
    judge = ["--use_api_reward", "--rm_api_type", "openai", "--rm_model", "gpt-4o-mini",
             "--rm_base_url", server.url]  # fmt: skip
    try:
        words = ["--batch_size", "2", "rollout.n=2", "data.val=[]", "--max_steps", "1"]
        code = rlcli("train", "--preset", "quickstart", *judge, *words, "--run_name", "judged")
        assert code == 0
        capsys.readouterr()
        before = len(server.calls)
        found = report(capsys, "judged", *SUMS, "--limit", "3")
        assert len(server.calls) - before == 1 + 3  # a probe, and one call per response
        assert found["unscored"] == 0
        assert found["pass@1"] is None
        assert found["reward_mean"] == pytest.approx(7 / 9)
        before = len(server.calls)
        report(capsys, "judged", *SUMS, "--limit", "3", "--reward", "rules")
        assert len(server.calls) == before
    finally:
        server.close()


AFTER_THE_TRIAL = (
    "    log = open('calls', 'a+'); log.write('.'); log.seek(0)\n    if len(log.read()) > 4:\n"
)
"""Before anything is sampled, a reward function is tried on two rows."""


def test_exit_1_when_nothing_could_be_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(
        f"def compute_score(**_):\n{AFTER_THE_TRIAL}        raise ValueError('no luck')\n"
        "    return 0.0\n"
    )
    words = ["builtin:quickstart", *SUMS, "--reward", "bad.py:compute_score", "--limit", "3"]
    assert rlcli("eval", *words, "--json") == 1
    seen = capsys.readouterr()
    found = json.loads(seen.out)
    assert (found["pass@1"], found["ci95"], found["reward_mean"]) == (None, {"pass@1": None}, None)
    assert "none of 3 responses could be scored" in seen.err
    assert "no luck" in seen.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["full", "--step", "9"], "no checkpoint of step 9; it has: 1, 2"),
        (["ful"], "Nearest run: full"),
        (["outputs/full/checkpoints/step_1", "--step", "2"], "is of step 1"),
        (["full", "--k", "0"], "expected whole numbers from 1"),
        (["full", "--k", "1,,8"], "expected whole numbers from 1"),
        (["full", "--data", "nowhere.jsonl"], "nowhere.jsonl is not there"),
        (["full", "--save", "no/where.jsonl"], "there is no folder"),
        (["full", "--device", "tpu"], "tpu"),
    ],
)
def test_wrong_input_exits_2_in_three_lines(
    cwd: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlcli("eval", *arguments) == 2
    seen = capsys.readouterr()
    assert words in seen.err
    assert len(seen.err.splitlines()) <= 3
    assert not seen.out


def test_ctrl_c_exits_130_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = tmp_path / "started"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        f"{AFTER_THE_TRIAL}"
        f"        pathlib.Path({str(started)!r}).touch()\n"
        "        time.sleep(600)\n"
        "    return float(solution_str == ground_truth)\n"
    )

    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    words = [*SUMS, "--limit", "4", "--reward", f"{tmp_path}/slow.py:compute_score"]
    # a run trained in this process has put its own in place
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        assert rlcli("eval", "builtin:quickstart", *words) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    seen = capsys.readouterr()
    assert not seen.out
    assert seen.err.splitlines() == [NOTE]
