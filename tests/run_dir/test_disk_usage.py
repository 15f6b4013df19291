"""The disk a run takes is known before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlcli.config.resolved import Resolved, with_values
from rlcli.config.schema import Config, defaults
from rlcli.errors import ConfigError
from rlcli.run_dir import disk_usage as module
from rlcli.run_dir.disk_usage import DiskNeed, check_disk, disk_need

SHAPES = {
    "model.embed_tokens.weight": (10, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.mlp.up_proj.weight": (8, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (10, 4),
}  # 40 + 16 + 32 + 4 + 40 = 132 weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def need(model: Path, critic: Path | None = None, **changes: object) -> DiskNeed | None:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return disk_need(with_values(Config(), values), model, critic)


def test_a_checkpoint_holds_weights_and_moments_in_float32(model: Path) -> None:
    assert need(model) == DiskNeed(checkpoint=132 * 12, final=132 * 2)


def test_a_critic_is_a_model_without_its_head(model: Path) -> None:
    assert need(model, model) == DiskNeed(checkpoint=(132 + 92) * 12, final=132 * 2)


def test_an_adapter_takes_rank_times_in_and_out_of_every_matrix(model: Path) -> None:
    assert need(model, lora__rank=2) == DiskNeed(checkpoint=12 * 40, final=4 * 40)
    only = need(model, lora__rank=2, lora__targets=["q_proj"], run__merge_lora=True)
    assert only == DiskNeed(checkpoint=12 * 16, final=4 * 16 + 264)


def test_a_model_without_safetensors_is_not_guessed_at(tmp_path: Path) -> None:
    assert need(tmp_path) is None


def test_the_estimate_is_what_the_quickstart_writes(tmp_path: Path) -> None:
    from rlcli.hub import find_model

    found = need(find_model("builtin:quickstart"))
    assert found is not None
    assert found.checkpoint == pytest.approx(9.43 * 2**20, rel=0.05)


def resolved(**changes: object) -> Resolved:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return Resolved(
        config=with_values(Config(), values),
        sources=dict.fromkeys(defaults(), "flag"),
        notes=[],
        explicit=frozenset(),
    )


def test_a_budget_that_holds_no_checkpoint_is_refused_with_the_size_needed(tmp_path: Path) -> None:
    sizes = DiskNeed(checkpoint=3 * 2**30, final=2**30)
    with pytest.raises(ConfigError) as told:
        check_disk(resolved(run__disk_budget=2.0), sizes, tmp_path / "run")
    message = str(told.value)
    assert len(message.splitlines()) <= 3
    for words in ("run.disk_budget=2.0 (from flag)", "4.00 GiB", "Raise run.disk_budget to 4.00"):
        assert words in message
    check_disk(resolved(run__disk_budget=4.0), DiskNeed(checkpoint=1, final=1), tmp_path)


def test_a_disk_that_holds_no_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda path: 1000)
    with pytest.raises(ConfigError, match=r"of disk left[\s\S]*--output_dir.*lora.rank=16"):
        check_disk(resolved(), DiskNeed(checkpoint=900, final=200), tmp_path)
    (tmp_path / "checkpoints" / "step_1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_1" / "x").write_bytes(b"x" * 100)
    check_disk(resolved(), DiskNeed(checkpoint=900, final=200), tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["lora.rank=4"],
        ["lora.rank=4", "lora.targets=[q_proj,mlp.down_proj]", "run.merge_lora=true"],
    ],
)
@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_the_plan_without_weights_says_the_same(overrides: list[str], algo: str) -> None:
    """quickstart: its config.json for the plan, the headers of its weights for the run."""
    from rlcli.config.resolver import resolve
    from rlcli.hub import find_model
    from rlcli.plan.disk import plan_disk
    from rlcli.plan.memory import Models
    from rlcli.plan.models import find_shape

    config = resolve(flags={}, overrides=overrides, files=[], env={}, algo=algo).config
    folder = find_model("builtin:quickstart")
    found = disk_need(config, folder, folder if algo == "ppo" else None)
    shape = find_shape("builtin:quickstart")
    models = Models(policy=shape, critic=shape if algo == "ppo" else None)
    planned = plan_disk(config, models, free_gib=None)
    assert found is not None
    assert planned.checkpoint_gib * 2**30 == pytest.approx(found.checkpoint, rel=0.01)
    assert planned.final_gib * 2**30 == pytest.approx(found.final, rel=0.01)
