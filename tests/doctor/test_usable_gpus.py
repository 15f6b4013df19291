"""A GPU that torch cannot use, and memory that runs out: one message with the cure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlcli.cli.main import main
from rlcli.config.resolved import with_values
from rlcli.config.resolver import resolve
from rlcli.config.schema import Config
from rlcli.doctor import gpu
from rlcli.errors import DeviceNotFoundError, TrainingError
from rlcli.plan.out_of_memory import is_out_of_memory, out_of_memory_error
from rlcli.trainer.run_plan import choose_device, describe_device

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")


@pytest.fixture
def eight_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that lists 8 GPUs, on a machine whose torch has no use for them."""
    command = tmp_path / "nvidia-smi"
    command.write_text(
        "#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8; do echo NVIDIA H200, 143771, 0, 450.80; done\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@needs_no_gpu
def test_a_gpu_that_torch_cannot_use_is_refused_with_the_cure(eight_gpus: None) -> None:
    with pytest.raises(DeviceNotFoundError) as caught:
        choose_device(Config())
    message = str(caught.value)
    assert "8 x NVIDIA H200, driver 450.80" in message
    assert "install" in message
    assert "train.device=cpu" in message


@needs_no_gpu
def test_train_device_cpu_takes_the_cpu(eight_gpus: None) -> None:
    on_cpu = with_values(Config(), {"train.device": "cpu"})
    assert choose_device(on_cpu) == torch.device("cpu")


@needs_no_gpu
def test_gpus_that_are_hidden_are_not_missed(
    eight_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device(Config()).type != "cuda"


def test_an_old_driver_is_named_in_the_words_of_torch(
    eight_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "The NVIDIA driver on your system is too old (found version 11000). Update it"
    seen = {"seen": 0, "cuda": "13.0", "said": [said]}
    monkeypatch.setattr(gpu, "ask_torch", lambda: (seen, None))
    with pytest.raises(DeviceNotFoundError, match="driver on your system is too old"):
        gpu.check_gpus_usable("auto", {})
    monkeypatch.setattr(gpu, "ask_torch", lambda: ({**seen, "seen": 8}, None))
    gpu.check_gpus_usable("auto", {})


@needs_no_gpu
def test_several_processes_do_not_start_on_gpus_that_torch_cannot_use(
    eight_gpus: None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--preset", "quickstart", "--n_gpus", "8", "--max_steps", "1"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "8 x NVIDIA H200" in err
    assert "on a GPU each" not in err
    assert not (tmp_path / "outputs").exists()


def test_the_banner_names_the_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["train", "--preset", "quickstart", "train.device=cpu", "--dry_run"])
    assert f"device: {describe_device(torch.device('cpu'))}" in capsys.readouterr().out


CUDA_OOM = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.99 GiB of "
    "which 1.20 GiB is free. Process 12 has 22.79 GiB memory in use."
)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError(CUDA_OOM), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("rank 1 failed: OutOfMemoryError: CUDA out of memory."), True),
        (RuntimeError("shape mismatch"), False),
    ],
)  # fmt: skip
def test_what_counts_as_out_of_memory(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory


def test_out_of_memory_ends_with_the_plans_cheapest_cures(tmp_path: Path) -> None:
    resolved = resolve(
        flags={}, overrides=["train.device=cpu"], files=[], env={}, preset="quickstart",
        cwd=tmp_path,
    )  # fmt: skip
    error = out_of_memory_error(torch.OutOfMemoryError(CUDA_OOM), resolved, tmp_path)
    assert isinstance(error, TrainingError)
    first, cures, last = str(error).split("\n")
    assert "Tried to allocate 2.00 GiB" in first
    assert "train.tokens_per_micro_batch=" in cures
    assert "--resume auto" in last


def test_the_cures_of_a_large_model_are_those_of_the_phase_that_ran_out(tmp_path: Path) -> None:
    def generate() -> None:
        raise torch.OutOfMemoryError(CUDA_OOM)

    def update() -> None:
        raise torch.OutOfMemoryError(CUDA_OOM)

    overrides = ["model.path=Qwen/Qwen2.5-7B-Instruct", "train.device=cuda", "rollout.n=8"]
    resolved = resolve(flags={}, overrides=overrides, files=[], env={}, algo="grpo", cwd=tmp_path)
    messages = []
    for phase in (generate, update):
        with pytest.raises(torch.OutOfMemoryError) as caught:
            phase()
        messages.append(str(out_of_memory_error(caught.value, resolved, tmp_path)))
    assert "in phase rollout" in messages[0]
    assert "in phase update" in messages[1]
    assert "gradient_checkpointing" not in messages[0]
    assert "GiB)" in messages[1]


def test_a_run_that_runs_out_of_memory_ends_with_the_cures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def update(self: object, *args: object, **more: object) -> None:
        raise torch.OutOfMemoryError(CUDA_OOM)

    monkeypatch.setattr("rlcli.engines.torch_engine.TorchEngine.update", update)
    monkeypatch.chdir(tmp_path)
    words = ["--preset", "quickstart", "train.device=cpu", "--max_steps", "1", "data.val=[]"]
    with pytest.raises(SystemExit) as ended:
        main(["train", *words, "--output_dir", "run"])
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "tokens_per_micro_batch" in err
    assert "out of memory" in (tmp_path / "run" / "status.json").read_text()
