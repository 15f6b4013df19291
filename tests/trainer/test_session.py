"""How a session ends, and what the next one may do with it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlcli.cli.main import main
from rlcli.engines.export import save_tensors
from rlcli.run_dir.folder import RunDir

ROOT = Path(__file__).resolve().parents[2]
BASE = [
    "train", "--preset", "quickstart", "--output_dir", "run", "rollout.val_n=1",
    "train.prompts_per_step=8", "train.mini_batch_prompts=8", "data.val_limit=24",
]  # fmt: skip


class Session:
    """Runs `rlcli` in this process, in a folder of its own."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.patch, self.capsys = folder, patch, capsys
        patch.chdir(folder)

    def __call__(self, *extra: str) -> tuple[int, str, str]:
        self.patch.setattr(sys, "argv", ["rlcli", *BASE, *extra])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self.capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    @property
    def status(self) -> dict[str, object]:
        return json.loads((self.folder / "run" / "status.json").read_text())

    def metrics(self) -> list[dict[str, float]]:
        lines = (self.folder / "run" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Session:
    return Session(tmp_path, monkeypatch, capsys)


AFTER_THE_TRIAL = (
    "    log = open('calls', 'a+'); log.write('.'); log.seek(0)\n"
    "    if len(log.read()) <= 4:\n"
    "        return float(solution_str == str(ground_truth))\n"
    "    else:\n"
)
"""Before training, a reward function is tried on two rows, with a right and a wrong answer."""


def test_a_reward_that_breaks_loses_nothing(session: Session) -> None:
    reward = session.folder / "reward.py"
    switch = session.folder / "broken"
    reward.write_text(
        "import pathlib\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    if solution_str == ground_truth: return 1.0\n"
        f"    if pathlib.Path({str(switch)!r}).exists(): raise RuntimeError('no licence')\n"
        "    return 0.0\n"
    )
    arguments = ["--reward", f"{reward}:compute_score", "data.val=[]"]
    assert session(*arguments, "--max_steps", "4", "--run_name", "whole")[0] == 0
    whole = session.metrics()
    (session.folder / "run").rename(session.folder / "whole")
    assert session(*arguments, "--max_steps", "2")[0] == 0
    switch.touch()
    code, _, err = session(*arguments, "--max_steps", "4", "--resume", "auto")
    assert code == 2
    assert "no licence" in err
    assert session.status["state"] == "failed"
    assert session.status["resumable"] is True
    switch.unlink()
    assert session(*arguments, "--max_steps", "4", "--resume", "auto")[0] == 0
    kept = ("time/", "tokens_per_s", "memory/")
    stable = [
        [{k: v for k, v in row.items() if not k.startswith(kept)} for row in rows]
        for rows in (session.metrics(), whole)
    ]
    assert stable[0] == stable[1]


def test_a_finished_run_can_be_taken_further(session: Session) -> None:
    assert session("--max_steps", "2")[0] == 0
    code, out, _ = session("--max_steps", "3", "--resume", "auto")
    assert code == 0
    assert "resumed from" in out
    steps = [m["step"] for m in session.metrics() if "reward_mean" in m]
    assert steps == [1, 2, 3]


def test_changed_settings_are_named_on_resume(session: Session) -> None:
    assert session("--max_steps", "1")[0] == 0
    code, out, _ = session("--max_steps", "2", "--resume", "auto", "--lr", "1e-5")
    assert code == 0
    assert "note: train.lr was 0.0003, is 1e-05 from here on" in out


def test_settings_that_an_older_version_did_not_have_did_not_change(session: Session) -> None:
    assert session("--max_steps", "1")[0] == 0
    file = session.folder / "run" / "config.json"
    written = json.loads(file.read_text())
    del written["lora"]["targets"], written["reward"]["judge"], written["ref"]
    written["rollout"].pop("top_p")
    file.write_text(json.dumps(written))
    code, out, _ = session("--max_steps", "2", "--resume", "auto", "rollout.val_n=2")
    assert code == 0
    told = [line for line in out.splitlines() if "from here on" in line]
    assert told == ["note: rollout.val_n was 1, is 2 from here on"]


def kept_files(folder: Path) -> dict[str, bytes]:
    """What a refused command must leave as it was."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_step_that_was_not_saved_changes_nothing(session: Session) -> None:
    assert session("--max_steps", "1")[0] == 0
    before = kept_files(session.folder / "run")
    absent = str(session.folder / "run" / "checkpoints" / "step_33")
    for resume in ("33", absent):
        code, _, err = session("--max_steps", "3", "--resume", resume, "train.lr=0.7")
        assert code == 2
        assert "no checkpoint of step 33; it has: 1." in err
        assert kept_files(session.folder / "run") == before
    assert session("--resume", "33", "--output_dir", "new")[0] == 2
    assert not (session.folder / "new").exists()


def test_a_step_without_a_run_leaves_no_directory(session: Session) -> None:
    session.patch.setattr(
        sys, "argv", ["rlcli", "train", "--preset", "quickstart", "--resume", "3"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert not list(session.folder.iterdir())


def test_settings_are_not_stored_where_nothing_is_left_to_train(session: Session) -> None:
    assert session("--max_steps", "1")[0] == 0
    file = session.folder / "run" / "config.json"
    before = file.read_text()
    code, out, _ = session("--max_steps", "1", "--resume", "auto", "train.lr=9")
    assert code == 0
    assert "nothing is left to train" in out
    assert "from here on" not in out
    assert file.read_text() == before
    code, out, _ = session("--max_steps", "2", "--resume", "auto", "train.lr=0.01")
    assert code == 0
    assert "note: train.lr was 0.0003, is 0.01 from here on" in out


def test_another_seed_is_named_on_resume(session: Session) -> None:
    assert session("--max_steps", "1")[0] == 0
    code, out, _ = session("--max_steps", "2", "--resume", "auto", "--seed", "5")
    assert code == 0
    assert "note: run.seed was 0, is 5 from here on" in out


def test_files_of_something_else_are_left_alone(session: Session) -> None:
    folder = session.folder / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    before = kept_files(folder)
    for extra in ([], ["--resume", "auto"]):
        code, _, err = session("--max_steps", "1", *extra)
        assert code == 2
        assert "run holds files that are of no run: config.json." in err
        assert "--output_dir" in err
        assert kept_files(folder) == before


def test_a_directory_that_cannot_be_made_is_not_called_full(session: Session) -> None:
    code, _, err = session("--output_dir", "/proc/foo")
    assert code == 2
    assert "cannot write to /proc/foo" in err
    assert "disk left" not in err


def test_a_name_that_is_taken_is_named_with_its_origin(session: Session) -> None:
    run = RunDir(session.folder / "outputs" / "abc")
    run.path.mkdir(parents=True)
    run.write_status("finished", 3, resumable=True, reason="")
    words = ["rlcli", "train", "--preset", "quickstart", "trainer.experiment_name=abc"]
    session.patch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    err = " ".join(session.capsys.readouterr().err.split())
    assert "choose another name than run.name=abc (from" in err
    assert "trainer.experiment_name" in err


def test_fewer_steps_than_are_done_are_named(session: Session) -> None:
    assert session("--max_steps", "2")[0] == 0
    code, out, _ = session("--max_steps", "1", "--resume", "auto")
    assert code == 0
    assert "2 steps are done, but only 1 are asked for: nothing is left to train" in out
    assert session.status["step"] == 2


def test_sigterm_ends_with_the_exit_code_asked_for(session: Session) -> None:
    reward = session.folder / "reward.py"
    reward.write_text(
        "import os, signal\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        f"{AFTER_THE_TRIAL}"
        f"        os.kill({os.getpid()}, signal.SIGTERM)\n"
        "    return 0.0\n"
    )
    arguments = ["--reward", f"{reward}:compute_score", "data.val=[]"]
    code, _, _ = session(*arguments, "--max_steps", "9", "run.preempt_exit_code=85")
    assert code == 85
    assert session.status["state"] == "preempted"
    assert session.status["resumable"] is True


@pytest.mark.parametrize(("num_ranks", "steps"), [(1, 2), (2, 500)])
def test_signals_that_go_on_to_the_last_moment_change_no_exit_code(
    tmp_path: Path, num_ranks: int, steps: int
) -> None:
    words = [*BASE, "data.val=[]", f"train.max_steps={steps}", f"train.n_gpus={num_ranks}"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    run = subprocess.Popen(
        [sys.executable, "-m", "rlcli.cli.main", *words, "run.preempt_exit_code=85"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    until = time.monotonic() + 300
    while run.poll() is None and time.monotonic() < until:
        done = metrics.read_text().count("policy_loss") if metrics.is_file() else 0
        if done >= min(steps, 2):
            run.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    said, _ = run.communicate(timeout=60)
    state = json.loads((tmp_path / "run" / "status.json").read_text())["state"]
    assert (state, run.returncode) == (("preempted", 85) if steps > 2 else ("finished", 0)), said


def test_a_stop_gives_up_an_evaluation_that_waits_for_rewards(session: Session) -> None:
    reward = session.folder / "reward.py"
    switch = session.folder / "quick"
    reward.write_text(
        "import os, pathlib, signal, time\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        f"    if pathlib.Path({str(switch)!r}).exists():\n"
        "        return 0.0\n"
        f"{AFTER_THE_TRIAL}"
        f"        os.kill({os.getpid()}, signal.SIGTERM)\n"
        "        time.sleep(600)\n"
        "    return 0.0\n"
    )
    session.patch.setattr("rlcli.trainer.rollout_step.STOP_PATIENCE_S", 0.2)
    arguments = ["--reward", f"{reward}:compute_score", "reward.timeout_s=900", "--max_steps", "1"]
    assert session(*arguments)[0] == 0
    assert (session.status["state"], session.status["resumable"]) == ("preempted", True)
    assert not (session.folder / "run" / "metrics.jsonl").exists()
    switch.touch()
    assert session(*arguments, "--resume", "auto")[0] == 0
    assert [row["step"] for row in session.metrics()] == [0, 1, 1]


def test_too_many_unscored_leave_an_evaluation_without_a_pass_rate(session: Session) -> None:
    reward = session.folder / "reward.py"
    reward.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    if int(ground_truth) % 2: raise ValueError('odd')\n"
        "    return 1.0\n"
    )
    arguments = ["--reward", f"{reward}:compute_score", "--data", "even.jsonl", "--max_steps", "1"]
    arguments += ["--val_data", "builtin:sums_val"]
    row = {"prompt": "1+1=", "ground_truth": "2", "data_source": "x"}
    (session.folder / "even.jsonl").write_text("\n".join([json.dumps(row)] * 8))
    assert session(*arguments)[0] == 0
    row = session.metrics()[0]
    assert row["eval/unscored"] > 0.2 * row["eval/rows"]
    assert row["eval/reward_mean"] == 1.0
    assert "eval/pass@1" not in row


def test_a_budget_that_is_too_small_leaves_nothing_behind(session: Session) -> None:
    code, _, err = session("--max_steps", "1", "run.disk_budget=0.001")
    assert code == 2
    assert "Raise run.disk_budget to 0.02 or more" in err
    assert not (session.folder / "run").exists()


def test_a_run_without_a_console_says_how_it_began_and_ended(session: Session) -> None:
    code, out, _ = session("--max_steps", "2", "run.loggers=[]")
    assert code == 0
    assert "Dynamic Batch" not in out
    assert "Validation Accuracy" not in out
    assert "run directory:" in out
    assert "Held-out pass@1:" in out
    assert [m["step"] for m in session.metrics()] == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("lora.rank=4", ["lora.rank=4", "lora.rank=0"]),
        ("algorithm.advantage=gae", ["has a critic"]),
    ],
)
def test_settings_that_do_not_fit_the_checkpoint_are_refused(
    session: Session, change: str, words: list[str]
) -> None:
    assert session("--max_steps", "1")[0] == 0
    before = (session.folder / "run" / "config.json").read_text()
    code, _, err = session("--max_steps", "2", "--resume", "auto", change)
    assert code == 2
    for word in [*words, "--output_dir"]:
        assert word in err
    assert (session.folder / "run" / "config.json").read_text() == before


def test_json_ends_with_one_object_on_stdout(session: Session) -> None:
    code, out, err = session("--max_steps", "1", "--json")
    assert code == 0
    said = json.loads(out)
    assert said["state"] == "finished"
    assert said["run_dir"] == "run"
    assert set(said["eval/pass@1"]) == {"0", "1"}
    assert "Validation Accuracy" in err


def test_resume_by_step_and_by_path(session: Session) -> None:
    assert session("--max_steps", "3", "--save_every", "1")[0] == 0
    code, out, _ = session("--max_steps", "3", "--save_every", "1", "--resume", "2")
    assert code == 0
    assert "step_2" in out
    path = session.folder / "run" / "checkpoints" / "step_3"
    session.patch.setattr(sys, "argv", ["rlcli", *BASE, "--max_steps", "4", "--resume", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    code, _, err = session("--resume", "77")
    assert code == 2
    assert "no checkpoint of step 77" in err


def test_resume_auto_without_anything_starts_anew(session: Session) -> None:
    assert session("--max_steps", "1", "--resume", "auto")[0] == 0
    assert [m["step"] for m in session.metrics()] == [0, 1, 1]


def test_a_tensor_file_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError):
            save_tensors({"a": torch.zeros(100_000)}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
