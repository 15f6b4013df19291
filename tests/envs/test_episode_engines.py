"""Episodes with every way of training, several ranks, and a run that is killed inside a tool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from env_runs import LOOKUP, command, same, train, weights
from safetensors.torch import load_file
from small_runs import metrics
from waiting import wait_until

SHORT = (*LOOKUP, "data.val_limit=2", "run.eval_every=-1", "run.save_every=1")
TOOL = '''\
import os, time

def look(k: int) -> int:
    """Look up the digit that belongs to a key.

    Args:
        k: The key, from 0 to 999.
    """
    if os.path.exists("hang") and os.path.exists("killed/checkpoints/step_1"):
        open("inside", "w").close()
        time.sleep(25)
    return (k * 7919 + 13) * 31 % 1009 % 10
'''


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("rollout.async_steps=1",),
        ("lora.rank=4",),
        ("--algo", "ppo"),
        pytest.param(("--algo", "remax"), marks=pytest.mark.nightly),
        pytest.param(("train.engine=fsdp",), marks=pytest.mark.nightly),
    ],
    ids=lambda words: words[-1],
)
def test_episodes_train_with_everything_else(words: tuple[str, ...]) -> None:
    assert train(*SHORT, *words) == 0
    steps = [row for row in metrics() if "epoch" in row]
    assert len(steps) == 2
    assert all(row["grad_norm"] > 0 and row["episode/turns_mean"] > 1 for row in steps)


def state(out: str) -> dict[str, torch.Tensor]:
    return load_file(Path(out) / "checkpoints" / "step_2" / "policy.safetensors")


@pytest.mark.nightly
@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_end_where_one_does(ranks: int) -> None:
    assert train(*SHORT, out="one") == 0
    assert train(*SHORT, f"train.n_gpus={ranks}", out="more") == 0
    one, more = state("one"), state("more")
    policy = [name for name in one if "policy.weight" in name]
    assert policy
    for name in policy:
        torch.testing.assert_close(more[name], one[name], rtol=0, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_sharded_engines_of_two_ranks_train_on_the_same_episodes(engine: str) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    assert train(*SHORT, out="one") == 0
    assert train(*SHORT, f"train.engine={engine}", "train.n_gpus=2", out="two") == 0
    rows = [[row for row in metrics(out) if "epoch" in row] for out in ("one", "two")]
    for one, two in zip(*rows, strict=True):
        assert one["reward_mean"] == two["reward_mean"]
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-5)


@pytest.mark.nightly
def test_a_run_killed_inside_a_tool_ends_with_the_same_bits() -> None:
    Path("tools.py").write_text(TOOL)
    words = ("train", *SHORT, "--tools", "tools.py", "--output_dir", "killed")
    Path("hang").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "rlcli.cli.main", *words], start_new_session=True
    )
    try:
        wait_until(lambda: Path("inside").exists() or process.poll() is not None, limit_s=300)
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    Path("hang").unlink()
    assert command(*words, "--resume", "auto") == 0
    assert train(*SHORT, "--tools", "tools.py", out="whole") == 0
    assert same(weights("whole"), weights("killed"))
