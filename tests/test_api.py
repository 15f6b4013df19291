"""The Python API: real runs of the quickstart, started from Python and from a notebook."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlcli
from rlcli.config.request import request_of
from rlcli.errors import LaunchError, RewardError, RunDirError
from rlcli.rewards.passed import name_function

ROOT = Path(__file__).resolve().parent.parent
SMALL: dict[str, Any] = {
    "preset": "quickstart",
    "batch_size": 4,
    "data.val": [],
    "rollout": {"n": 2},
    "train.mini_batch_prompts": 4,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)


def exact(bonus: float) -> Callable[..., float]:
    """A function that no other process can import."""

    def score(solution_str: str, ground_truth: Any) -> float:
        return float(solution_str.strip() == str(ground_truth)) + bonus

    return score


def test_import_rlcli_imports_no_torch() -> None:
    code = (
        "import sys, rlcli\n"
        "rlcli.load_run, rlcli.train, rlcli.RunRecord\n"
        "from rlcli import evaluate\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'pandas', 'IPython'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    assert not hasattr(rlcli, "no_such_name")
    assert {"train", "evaluate", "load_run"} <= set(dir(rlcli))


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (None, {"lr": 2e-5, "model": "some/model"}),
        (None, {"train.lr": 2e-5, "model": "some/model"}),
        ({"train": {"lr": 2e-5}, "model": {"path": "some/model"}}, {}),
        ({"train.lr": 1e-3, "model": "some/model"}, {"train": {"lr": 2e-5}}),
        ({"lr": 1e-3}, {"lr": "2e-5", "model": Path("some/model")}),
    ],
)
def test_every_way_to_give_a_setting_resolves_alike(
    here: Path, config: Any, settings: dict[str, Any]
) -> None:
    resolved = request_of(config, settings).resolve()
    assert resolved.config.train.lr == 2e-5
    assert resolved.config.model.path == "some/model"


def test_a_yaml_file_is_below_python_values(here: Path) -> None:
    (here / "run.yaml").write_text("train: {lr: 1e-3, epochs: 7}\nalgo: rloo\n")
    config = request_of("run.yaml", {"lr": 2e-5}).resolve().config
    assert (config.train.lr, config.train.epochs, config.algorithm.name) == (2e-5, 7, "rloo")


def test_values_and_sources_are_those_of_the_command_line(here: Path) -> None:
    from rlcli.config.resolver import resolve

    typed = resolve(
        flags={"max_steps": 3}, overrides=["rollout.n=8"], files=[], env={}, algo="grpo"
    )
    given = request_of(None, {"algo": "grpo", "max_steps": 3, "rollout": {"n": 8}}).resolve()
    assert given.config == typed.config
    assert given.sources == typed.sources


@pytest.mark.parametrize(
    "text", ["", "a # b", " x ", "line\nline", "null", "[open", '"', "1e-5", "{a: 1}", "\u4f60"]
)
def test_text_arrives_as_it_is(here: Path, text: str) -> None:
    config = request_of(None, {"data.prompt_template": text + "{prompt}"}).resolve().config
    assert config.data.prompt_template == text + "{prompt}"
    if text:
        assert request_of({"run": {"project": text}}, {}).resolve().config.run.project == text


def test_words_say_the_same_to_the_command_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlcli.cli.main import main

    settings = {"lr": 2e-5, "use_api_reward": False, "rollout": {"stop": ["a b"]}}
    request = request_of(None, {"preset": "quickstart", **settings})
    with pytest.raises(SystemExit):
        main(["train", "--dry-run", "--json", *request.words()])
    shown = json.loads(capsys.readouterr().out)["config"]
    assert shown["train"]["lr"] == 2e-5
    assert shown["rollout"]["stop"] == ["a b"]
    assert shown["reward"]["judge"]["enabled"] is False


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train.learning": 1}, "learning"),
        ({"lr": "abc"}, "train.lr"),
        ({"train.lr": object()}, "train.lr"),
        ({"algo": "grop"}, "grpo"),
        ({"model": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_a_wrong_setting_raises_and_leaves_nothing(
    here: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(rlcli.RlcliError, match=says):
        rlcli.train(settings, data="builtin:sums")
    assert not (here / "outputs").exists()


# -- training ------------------------------------------------------------------------------------


def test_a_run_is_read_as_its_files_say(here: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run = rlcli.train(SMALL | {"data.val": ["builtin:sums_val"], "data.val_limit": 5}, max_steps=2)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in lines if "epoch" in row]
    assert run.metrics == steps
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert [row["step"] for row in run.evaluations] == [0, 2]
    assert (run.state, run.step, run.status["resumable"]) == ("finished", 2, True)
    assert run.settings["train.max_steps"] == 2
    assert run.sources["train.max_steps"] == "flag --max_steps"
    assert len(run.rollouts(1)) == 4 * 2
    assert [row["step"] for row in run.rollouts()] == [1] * 8 + [2] * 8
    mean = sum(row["reward"] for row in run.rollouts(1)) / 8
    assert mean == pytest.approx(run.metrics[0]["reward_mean"])
    assert run.model == run.path / "checkpoints" / "final"
    assert run.report is not None
    assert "finished" in str(run)
    assert rlcli.load_run("latest").path.resolve() == run.path.resolve()
    assert rlcli.load_run(run.path.name).metrics == run.metrics


def test_frames_hold_the_same_values_where_pandas_is_installed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rlcli.train(SMALL, max_steps=2)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(rlcli.RlcliError, match="pandas"):
            run.metrics_frame()
    pytest.importorskip("pandas")
    frame = run.metrics_frame()
    assert list(frame.index) == [1, 2]
    assert list(frame["reward_mean"]) == [row["reward_mean"] for row in run.metrics]
    assert len(run.rollouts_frame()) == 16
    assert run.settings_frame().loc["train.lr", "value"] == run.settings["train.lr"]


def test_load_run_names_the_nearest(here: Path) -> None:
    rlcli.train(SMALL, max_steps=1, run_name="sums-one")
    with pytest.raises(RunDirError, match="sums-one"):
        rlcli.load_run("sums-on")


@pytest.mark.parametrize("pickles", [True, False], ids=["cloudpickle", "in_process"])
def test_a_local_function_is_the_reward(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pickles: bool
) -> None:
    if pickles:
        pytest.importorskip("cloudpickle", reason="pip install cloudpickle enables it")
    else:
        without_cloudpickle(monkeypatch)
    run = rlcli.train(SMALL, reward=exact(bonus=2.0), max_steps=1)
    rewards = {row["reward"] for row in run.rollouts()}
    assert rewards <= {2.0, 3.0}
    assert ("called in this process" in capsys.readouterr().out) is not pickles
    again = rlcli.evaluate(run, data="builtin:sums_val", limit=3, n=2, temperature=1.0)
    assert {row["reward"] for row in again.rollouts} <= {2.0, 3.0}


def test_a_run_with_a_pickled_reward_is_resumed_by_the_command_line(here: Path) -> None:
    pytest.importorskip("cloudpickle", reason="pip install cloudpickle enables it")
    run = rlcli.train(SMALL, reward=exact(bonus=2.0), max_steps=1)
    command = [sys.executable, "-m", "rlcli.cli.main", "runs", "resume", str(run.path)]
    subprocess.run([*command, "train.max_steps=2"], check=True, capture_output=True)
    assert run.step == 2
    assert {row["reward"] for row in run.rollouts(2)} <= {2.0, 3.0}


def test_a_function_of_this_process_cannot_be_resumed_elsewhere(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cloudpickle(monkeypatch)
    run = rlcli.train(SMALL, reward=exact(bonus=2.0), max_steps=1)
    command = [sys.executable, "-m", "rlcli.cli.main", "runs", "resume", str(run.path)]
    ended = subprocess.run([*command, "train.max_steps=2"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "rlcli.train" in ended.stderr


def test_an_error_in_a_function_of_this_process_is_unscored_with_its_line(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cloudpickle(monkeypatch)

    def picky(solution_str: str) -> float:
        if solution_str.endswith("7"):
            raise ValueError("no seven")
        return 1.0

    run = rlcli.train(SMALL | {"rollout": {"n": 8}}, reward=picky, max_steps=1)
    for row in run.rollouts():
        if row["response"].endswith("7"):
            assert row["reward"] is None
            assert "no seven" in row["error"]
            assert "test_api.py:" in row["error"]
        else:
            assert row["reward"] == 1.0
    assert run.metrics[0]["unscored"] > 0


def test_a_reward_that_fails_on_every_answer_is_refused(here: Path) -> None:
    def broken(solution_str: str) -> float:
        return 1 / 0

    with pytest.raises(RewardError, match="division by zero"):
        rlcli.train(SMALL, reward=broken, max_steps=1)
    with pytest.raises(RewardError, match="does not take the response"):
        rlcli.train(SMALL, reward=lambda x: 1.0, max_steps=1)


def test_a_function_of_a_module_is_named_by_the_module(tmp_path: Path) -> None:
    from rlcli.rewards.rules.exact import compute_score

    named, notes = name_function(compute_score, tmp_path)
    assert (named, notes) == ("rlcli.rewards.rules.exact:compute_score", [])
    assert not list(tmp_path.iterdir())


def test_a_function_that_cannot_be_pickled_stays_here(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle", reason="pip install cloudpickle enables it")
    lock = threading.Lock()

    def locked(solution_str: str) -> float:
        with lock:
            return 1.0

    named, (note,) = name_function(locked, tmp_path)
    assert named == "this_process:locked"
    assert "cannot be pickled" in note


def test_another_thread_can_train(here: Path) -> None:
    runs: list[rlcli.RunRecord] = []
    thread = threading.Thread(target=lambda: runs.append(rlcli.train(SMALL, max_steps=1)))
    thread.start()
    thread.join()
    assert runs[0].state == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_reaches_the_programs_own_handler(
    here: Path, number: signal.Signals
) -> None:
    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(number, stop)
    watcher = threading.Thread(target=_send_after_first_step, args=(here / "run", number))
    watcher.start()
    try:
        with pytest.raises(Stopped):
            rlcli.train(SMALL, output_dir="run", max_steps=500)
    finally:
        signal.signal(number, before)
        watcher.join()
    run = rlcli.load_run("run")
    assert (run.state, run.status["resumable"]) == ("preempted", True)
    done = run.step
    assert 0 < done < 500
    again = rlcli.train(SMALL, output_dir="run", max_steps=done + 1, resume="auto")
    assert (again.state, again.step) == ("finished", done + 1)
    assert [row["step"] for row in again.metrics] == list(range(1, done + 2))


def _send_after_first_step(folder: Path, number: int) -> None:
    while not (folder / "metrics.jsonl").is_file() or not (folder / "metrics.jsonl").stat().st_size:
        time.sleep(0.05)
    os.kill(os.getpid(), number)


def test_several_processes_train_from_python(here: Path) -> None:
    pytest.importorskip("cloudpickle", reason="pip install cloudpickle enables it")
    two = {"n_gpus": 2, "train.device": "cpu", "max_steps": 1}
    run = rlcli.train(SMALL, reward=exact(bonus=2.0), **two)
    assert (run.state, run.step) == ("finished", 1)
    assert {row["reward"] for row in run.rollouts()} <= {2.0, 3.0}
    with pytest.raises(RunDirError, match="holds a run already"):
        rlcli.train(SMALL, output_dir=str(run.path), **two)


def test_a_rank_of_a_launcher_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(LaunchError, match="rank 1 of 4"):
        rlcli.train(SMALL, max_steps=1)


# -- evaluation ----------------------------------------------------------------------------------


def test_evaluate_gives_what_the_command_prints(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlcli.cli.main import main

    given = rlcli.evaluate("builtin:quickstart", data="builtin:sums_val", k=(1, 2), limit=10)
    words = ["builtin:quickstart", "--data", "builtin:sums_val", "--k", "1,2", "--limit", "10"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["eval", *words, "--json"])
    printed = json.loads(capsys.readouterr().out)
    changing = {"wall_s", "tokens_per_s"}
    assert {k: v for k, v in given.summary.items() if k not in changing} == {
        k: v for k, v in printed.items() if k not in changing
    }
    assert len(given.rollouts) == 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 4, "n": 2}, "needs as many"),
        ({"device": "tpu"}, "device"),
        ({"limit": "x"}, "limit"),
    ],
)
def test_evaluate_refuses_what_it_cannot_use(
    here: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(rlcli.RlcliError, match=says):
        rlcli.evaluate("builtin:quickstart", data="builtin:sums_val", **options)


def test_evaluate_raises_if_nothing_is_scored(here: Path) -> None:
    def sometimes(solution_str: str, ground_truth: Any) -> float:
        if solution_str == str(ground_truth):
            return 1.0
        raise ValueError("no sum")

    with pytest.raises(rlcli.RlcliError, match="none of 3 responses"):
        rlcli.evaluate(
            "builtin:quickstart",
            data="builtin:sums_val",
            limit=3,
            max_response_tokens=1,
            reward=sometimes,
        )


# -- notebooks -----------------------------------------------------------------------------------


def test_the_notebook_of_the_examples_runs(here: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "support" / "notebook_cells.py")]
    notebook = ROOT / "examples" / "quickstart.ipynb"
    changes = ["max_steps=40", "max_steps=2", "limit=100", "limit=5"]
    subprocess.run([*command, str(notebook), "values.json", *changes], check=True, cwd=here)
    *_, curve, worst, scores = json.loads((here / "values.json").read_text())
    assert [step for step, _ in curve] == [1, 2]
    run = rlcli.load_run("latest")
    assert {row["reward"] for row in run.rollouts()} <= {0.0, 0.1, 1.0}
    assert all(row["parts"]["is_right"] == float(row["reward"] == 1.0) for row in run.rollouts())
    assert worst[3] == min(row["reward"] for row in run.rollouts(2))
    assert all(0.0 <= score <= 1.0 for score in scores)


def test_a_notebook_shows_one_output_that_is_replaced(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """IPython is a stand-in here: it records what it is asked to show."""
    from types import ModuleType, SimpleNamespace

    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)

    def display(html: str, *, display_id: bool) -> SimpleNamespace:
        shown.append(html)
        return handle

    ipython, shows = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    shows.display, shows.HTML = display, str  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shows)
    run = rlcli.train(SMALL, max_steps=2)
    assert "step 2/2" in shown[-1]
    assert "finished" in shown[-1]
    out = capsys.readouterr().out
    assert "Actor Loss" not in out
    assert str(run.path) in out
