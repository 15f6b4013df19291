"""`rlcli train` as a user runs it: real processes, real files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from rlcli.cli.main import main

ROOT = Path(__file__).resolve().parent.parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def rlcli(*args: str, cwd: Path, env: dict[str, str] | None = None) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "rlcli.cli.main", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**ENV, **(env or {})},
        timeout=600,
        check=False,
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished quickstart run."""
    cwd = tmp_path_factory.mktemp("quickstart")
    return cwd, rlcli("train", "--preset", "quickstart", cwd=cwd)


def test_quickstart_at_least_doubles_its_held_out_score(quickstart: tuple[Path, Any]) -> None:
    cwd, done = quickstart
    assert done.returncode == 0, done.stderr
    (run,) = [p for p in (cwd / "outputs").iterdir() if not p.is_symlink()]
    scores = [m["eval/pass@1"] for m in metrics(run) if "eval/pass@1" in m]
    assert 0.25 <= scores[0] <= 0.35
    assert scores[-1] >= 2 * scores[0]
    assert "Held-out pass@1:" in done.stdout
    assert f"Validation Accuracy: {scores[0]:.1%}" in done.stdout
    assert "Dynamic Batch: " in done.stdout


def test_quickstart_leaves_what_scripts_rely_on(quickstart: tuple[Path, Any]) -> None:
    cwd, _ = quickstart
    link = cwd / "outputs" / "checkpoints"
    run = link.resolve().parent
    for name in ("config.json", "sources.json", "metrics.jsonl", "console.log", "run.lock"):
        assert (run / name).is_file()
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    sources = json.loads((run / "sources.json").read_text())
    assert sources["model.path"] == "recipe quickstart"
    assert sources["algorithm.gamma"] == "default"
    steps = [m for m in metrics(run) if "reward_mean" in m]
    assert steps[0]["step"] == 1
    for key in ("policy_loss", "clip_fraction", "entropy", "response_length_mean", "tokens_per_s"):
        assert key in steps[0]
    assert "value_loss" not in steps[0]
    assert "kl_divergence" not in steps[0]
    assert max(m["sampler/prob_gap"] for m in steps) < 1e-5


def test_quickstarts_final_model_loads_in_transformers(quickstart: tuple[Path, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cwd, _ = quickstart
    final = cwd / "outputs" / "checkpoints" / "final"
    model = AutoModelForCausalLM.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    ids = tokenizer("23+4=", return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=1)
    assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip().isdigit()


def small(*extra: str) -> list[str]:
    """Three steps of 8 prompts, evaluated on 16 rows."""
    size = ["--batch_size", "8", "train.mini_batch_prompts=8", "data.val_limit=16"]
    words = ["--preset", "quickstart", "--max_steps", "3", "rollout.val_n=1", *size]
    return ["train", *words, *extra]


def test_the_same_seed_gives_the_same_metrics_to_the_bit(tmp_path: Path) -> None:
    seen = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        done = rlcli(*small("--output_dir", name, "--seed", seed), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        seen.append(
            [
                {
                    k: v
                    for k, v in m.items()
                    if not k.startswith(("time/", "tokens_per_s", "memory"))
                }
                for m in metrics(tmp_path / name)
            ]
        )
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


def test_sigterm_saves_and_resume_finishes(tmp_path: Path) -> None:
    argv = small("--output_dir", "run", "--max-steps")
    process = subprocess.Popen(
        [sys.executable, "-m", "rlcli.cli.main", *argv, "500"], cwd=tmp_path, env=ENV,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    file = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: file.is_file() and '"step": 2' in file.read_text(), 300)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "preempted"
    assert status["resumable"]
    assert "--resume auto" in out
    last = status["step"] + 3
    done = rlcli(*argv, str(last), "--resume", "auto", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = [m["step"] for m in metrics(tmp_path / "run") if "reward_mean" in m]
    assert steps == list(range(1, last + 1))


def test_ctrl_c_saves_and_exits_130(tmp_path: Path) -> None:
    argv = small("--output_dir", "run", "--max-steps", "500")
    process = subprocess.Popen(
        [sys.executable, "-m", "rlcli.cli.main", *argv], cwd=tmp_path, env=ENV,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    file = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: file.is_file() and '"step": 1' in file.read_text(), 300)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Ctrl-C: stopping after this step" in err
    assert list((tmp_path / "run" / "checkpoints").glob("step_*/manifest.json"))


def test_sigterm_does_not_wait_for_a_reward_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "import pathlib, time\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    if not pathlib.Path('run', 'config.json').exists():  # it is tried before the run\n"
        "        return float(solution_str == ground_truth)\n"
        "    pathlib.Path('asked').touch()\n"
        "    time.sleep(1000)\n"
    )
    argv = small("--output_dir", "run", "--reward", "reward.py:compute_score", "data.val=[]")
    process = subprocess.Popen(
        [sys.executable, "-m", "rlcli.cli.main", *argv, "reward.timeout_s=1000"], cwd=tmp_path,
        env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until((tmp_path / "asked").is_file, 300)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"], status["resumable"]) == ("preempted", 0, True)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    argv = small("--output_dir", "run")
    command = f"{sys.executable} -m rlcli.cli.main {' '.join(argv)} | head -2"
    subprocess.run(command, shell=True, cwd=tmp_path, env=ENV, check=True, capture_output=True)
    file = tmp_path / "run" / "status.json"
    wait_until(lambda: json.loads(file.read_text())["state"] != "running", 300)
    status = json.loads(file.read_text())
    assert (status["state"], status["step"]) == ("finished", 3)


def test_a_second_run_in_the_same_directory_is_turned_away(quickstart: tuple[Path, Any]) -> None:
    cwd, _ = quickstart
    run = (cwd / "outputs" / "checkpoints").resolve().parent
    step = json.loads((run / "status.json").read_text())["step"]
    again = rlcli(*small("--output_dir", str(run)), cwd=cwd)
    assert again.returncode == 2
    assert f"holds a run already (finished at step {step})" in again.stderr
    assert "--resume auto" in again.stderr


def write_rows(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


ROW = {"prompt": "1+1=", "ground_truth": "2", "data_source": "sums"}


def part_of_a_model(folder: Path) -> str:
    """The quickstart model without its last norm."""
    from safetensors.torch import load_file, save_file

    part = folder / "part"
    shutil.copytree(ROOT / "rlcli" / "assets" / "quickstart", part)
    tensors = load_file(part / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    return str(part)


def model_with_nan(folder: Path) -> str:
    """The quickstart's model with one weight that is not a number."""
    from safetensors.torch import load_file, save_file

    model = folder / "nan"
    shutil.copytree(ROOT / "rlcli" / "assets" / "quickstart", model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][5] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return str(model)


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Name -> (arguments, words the message must hold)."""
    empty = folder / "empty.jsonl"
    empty.write_text("")
    (folder / "nothing").mkdir()
    (folder / "plain").mkdir()
    (folder / "plain" / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "taken").write_text("a file")
    broken = folder / "broken.jsonl"
    broken.write_text(json.dumps(ROW) + "\n{not json\n")
    no_prompt = write_rows(folder / "noprompt.jsonl", ROW, {"ground_truth": "2"})
    long_one = write_rows(folder / "long.jsonl", {**ROW, "prompt": "1+1=" * 40})
    syntax = folder / "syntax.py"
    syntax.write_text("def compute_score(:\n")
    quick = ["--preset", "quickstart"]
    return {
        "no gpu": ([*quick, "train.device=cuda"], ["train.device=cuda", "train.device=auto"]),
        "missing model": ([*quick, "--model", "./nope"], ["./nope", "--preset quickstart"]),
        "not a model": ([*quick, "--model", "nothing"], ["config.json"]),
        "no tokenizer": ([*quick, "--model", "plain"], ["no tokenizer", "tokenizer.json"]),
        "missing data": ([*quick, "--data", "nope.jsonl"], ["nope.jsonl"]),
        "empty data": ([*quick, "--data", str(empty)], ["empty.jsonl"]),
        "malformed data": ([*quick, "--data", str(broken)], ["broken.jsonl:2"]),
        "field missing": ([*quick, "--data", no_prompt], ["noprompt.jsonl:2", "prompt"]),
        "prompt too long": ([*quick, "--data", long_one], ["long.jsonl:1", "max_prompt_tokens"]),
        "group of one": ([*quick, "rollout.n=1"], ["rollout.n >= 2", "reinforce_plus_plus"]),
        "rows do not divide": (
            [*quick, "train.micro_batch_size=7"],
            ["micro_batch_size", "7"],
        ),
        "output dir is a file": ([*quick, "--output_dir", "taken"], ["taken", "--output_dir"]),
        "reward with a syntax error": (
            [*quick, "--reward", f"{syntax}:compute_score"],
            ["syntax.py:1", "SyntaxError"],
        ),
        "unknown setting": ([*quick, "train.lrr=1"], ["train.lrr", "train.lr"]),
        "unknown algorithm": (["--algo", "grop"], ["grop", "grpo"]),
        "context too small": (
            [*quick, "data.max_response_tokens=4000"],
            ["positions", "data.max_response_tokens"],
        ),
        "no ground truth": (
            [*quick, "--data", write_rows(folder / "nogold.jsonl", {"prompt": "1+1="})],
            ["nogold.jsonl:1", "ground_truth"],
        ),
        "half a surrogate": (
            [*quick, "--data", write_rows(folder / "half.jsonl", {**ROW, "prompt": "\ud800"})],
            ["half.jsonl:1", "surrogate"],
        ),
        "run name is a path": ([*quick, "--run_name", "../x"], ["run.name=../x"]),
        "weights missing": ([*quick, "--model", part_of_a_model(folder)], ["lacks", "weights"]),
        "weight is not finite": (
            [*quick, "--model", model_with_nan(folder)],
            ["model.norm.weight", "nan", "[5]"],
        ),
        "unknown data source": (
            [*quick, "reward.fn=rules", "--data",
             write_rows(folder / "x.jsonl", {**ROW, "data_source": "gms8k"})],
            ["gms8k", "gsm8k"],
        ),
    }  # fmt: skip


NAMES = [
    "no gpu", "missing model", "not a model", "no tokenizer", "missing data", "empty data",
    "malformed data", "field missing", "prompt too long", "group of one", "rows do not divide",
    "output dir is a file", "reward with a syntax error", "unknown setting", "unknown algorithm",
    "context too small", "unknown data source", "no ground truth", "half a surrogate",
    "run name is a path", "weights missing", "weight is not finite",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_refused_with_the_cure(
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, words = bad_inputs(tmp_path)[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rlcli", "train", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert len(said.strip().splitlines()) <= 3
    for word in words:
        assert word in said
    is_known_before_loading = name != "weight is not finite"
    assert (tmp_path / "outputs").exists() != is_known_before_loading


def test_no_hub_names_the_ways_out(tmp_path: Path) -> None:
    done = rlcli("train", cwd=tmp_path, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert done.returncode == 2
    assert "Qwen/Qwen2.5-0.5B" in done.stderr
    assert "--preset quickstart" in done.stderr
    assert "--model PATH" in done.stderr


def test_dry_run_says_everything_as_json_and_writes_nothing(tmp_path: Path) -> None:
    done = rlcli("train", "--preset", "quickstart", "--dry_run", "--json", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert said["preset"] == "grpo"
    assert said["batch"]["rollouts_per_step"] == 512
    assert said["sources"]["rollout.n"] == "recipe quickstart"
    assert list(tmp_path.iterdir()) == []


def test_a_typo_in_an_option_gets_the_nearest_name(tmp_path: Path) -> None:
    done = rlcli("train", "--modle", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert "--model" in done.stderr
