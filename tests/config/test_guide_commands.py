"""The 18 main_ppo commands of the guides, copied as printed, start the run they describe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from guide_texts import CONFIGS, ENV, commands

from rlcli.config.resolver import resolve
from rlcli.errors import ConfigError
from rlcli.setup.checks import batch_arithmetic, check, resolve_sampler


class Expected(NamedTuple):
    algorithm: str
    lr: float
    n: int
    step: int
    mini: int
    epochs: int
    model: str
    more: Mapping[str, Any] = MappingProxyType({})


QWEN2, QWEN25, SMALL = "Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-0.5B"
BASELINE = "reinforce_plus_plus_baseline"
GSM8K = ["/home/ann/data/gsm8k/train.parquet"]
BOTH = [*GSM8K, "/home/ann/data/math/train.parquet"]
EXPECTED = [
    Expected(
        "rloo", 1e-6, 5, 1024, 256, 15, QWEN2, {"algorithm.kl_coef": 0.001, "data.train": GSM8K}
    ),
    Expected(
        "rloo",
        5e-7,
        8,
        512,
        256,
        20,
        QWEN2,
        {"algorithm.kl_coef": 0.002, "data.max_response_tokens": 2048},
    ),
    Expected("rloo", 1e-6, 6, 1024, 256, 20, QWEN2, {"data.train": BOTH}),
    Expected(
        "rloo",
        1e-6,
        4,
        512,
        256,
        15,
        SMALL,
        {
            "train.micro_batch_size": 32,
            "train.dynamic_batch": False,
            "rollout.tensor_parallel": 4,
            "rollout.memory_fraction": 0.5,
            "train.offload_params": True,
            "ref.offload_params": True,
            "train.n_gpus": 8,
        },
    ),
    Expected(
        BASELINE,
        3e-6,
        8,
        1024,
        1024,
        15,
        QWEN2,
        {
            "data.train": BOTH,
            "data.val": [path.replace("train", "test") for path in BOTH],
            "train.n_gpus": 16,
        },
    ),
    Expected("reinforce_plus_plus", 3e-6, 12, 1024, 1024, 15, QWEN2),
    Expected(BASELINE, 3e-6, 8, 1024, 1024, 12, QWEN2, {"data.train": GSM8K}),
    Expected(
        BASELINE,
        1e-6,
        8,
        512,
        512,
        15,
        "Qwen/Qwen2-14B-Instruct",
        {"train.n_gpus": 16, "rollout.tensor_parallel": 4},
    ),
    Expected(
        BASELINE,
        3e-6,
        6,
        512,
        512,
        15,
        SMALL,
        {"train.micro_batch_size": 8, "train.offload_params": True, "train.n_gpus": 8},
    ),
    Expected("remax", 1e-6, 4, 1024, 256, 10, QWEN25, {"train.tokens_per_micro_batch": 24000}),
    Expected("remax", 1e-6, 4, 1024, 256, 10, QWEN25, {"algorithm.kl_in_reward": False}),
    Expected(
        "remax",
        5e-7,
        4,
        512,
        256,
        10,
        "Qwen/Qwen2.5-14B-Instruct",
        {
            "train.tokens_per_micro_batch": 16000,
            "rollout.tensor_parallel": 4,
            "train.n_gpus": 8,
        },
    ),
    Expected("remax", 1e-6, 4, 512, 256, 15, SMALL, {"data.max_prompt_tokens": 1024}),
    Expected(
        "remax",
        1e-6,
        4,
        2048,
        256,
        10,
        SMALL,
        {
            "train.tokens_per_micro_batch": 20000,
            "rollout.tensor_parallel": 2,
            "train.n_gpus": 8,
            "train.nnodes": 4,
        },
    ),
    Expected("grpo", 1e-6, 4, 256, 256, 10, SMALL, {"algorithm.kl_loss": True}),
    Expected(
        "ppo",
        1e-6,
        1,
        256,
        256,
        10,
        SMALL,
        {
            "algorithm.gamma": 0.99,
            "critic.path": QWEN25,
            "critic.epochs": 2,
            "critic.mini_batch_prompts": 64,
        },
    ),
    Expected("ppo", 1e-6, 1, 256, 256, 10, SMALL, {"critic.path": QWEN25}),
    Expected("rloo", 1e-6, 4, 1024, 256, 15, SMALL, {"algorithm.kl_in_reward": True}),
]


@pytest.mark.parametrize(("arguments", "expected"), list(zip(commands(), EXPECTED, strict=True)))
def test_a_command_of_the_guides_starts_its_run(
    arguments: list[str], expected: Expected, tmp_path: Path
) -> None:
    resolved = check(resolve(flags={}, overrides=arguments, files=[], env=ENV, cwd=tmp_path))
    config = resolved.config
    got = Expected(
        config.algorithm.name,
        config.train.lr,
        config.rollout.n,
        config.train.prompts_per_step,
        config.train.mini_batch_prompts,
        config.train.epochs,
        config.model.path,
        {key: resolved.value(key) for key in expected.more},
    )
    assert got == expected
    assert batch_arithmetic(config, 7473)[1]


@pytest.mark.parametrize("arguments", commands())
def test_a_command_of_the_guides_runs_scaled_down(arguments: list[str], tmp_path: Path) -> None:
    small = ["data.train_batch_size=8", "rollout.n=2"]
    overrides = [*arguments, *small]
    resolved = check(
        resolve(flags={"max_steps": 2}, overrides=overrides, files=[], env=ENV, cwd=tmp_path)
    )
    config, _ = batch_arithmetic(resolved.config, 100)
    assert (config.train.prompts_per_step, config.train.mini_batch_prompts) == (8, 8)


FROM_CONFIG = {
    "grpo_config": {"algorithm.name": "grpo", "rollout.n": 4, "algorithm.kl_loss": True},
    "ppo_config": {"algorithm.name": "ppo", "algorithm.gamma": 0.99, "critic.path": QWEN25},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_of_the_guides_starts_its_run_by_config_name(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.yaml").write_text(CONFIGS[name])
    model = f"actor_rollout_ref.model.path={QWEN25}"
    resolved = check(
        resolve(flags={}, overrides=[model], files=[Path(name)], env=ENV, cwd=tmp_path)
    )
    assert {key: resolved.value(key) for key in FROM_CONFIG[name]} == FROM_CONFIG[name]
    assert resolved.notes == []


def test_a_command_of_the_guides_that_offloads_the_actor_on_8_gpus_takes_fsdp(
    tmp_path: Path,
) -> None:
    small_memory = commands()[3]
    resolved = check(resolve(flags={}, overrides=small_memory, files=[], env=ENV, cwd=tmp_path))
    resolved = resolve_sampler(resolved, is_cuda=False)
    assert resolved.config.train.engine == "fsdp"
    assert any("turns train.engine to fsdp" in note for note in resolved.notes)
    assert [note for note in resolved.notes if note.startswith("not used: ")] == [
        "not used: rollout.memory_fraction, rollout.tensor_parallel "
        "(the native sampler samples on the CPU).",
    ]


def test_the_yaml_blocks_of_the_guides_are_config_files(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "guides"
    if not folder.is_dir():
        pytest.skip("the guides are not here: put them into ../shared/guides")
    blocks = [
        block
        for path in sorted(folder.glob("*.md"))
        for block in re.findall(r"```yaml\n(.*?)```", path.read_text("utf-8", "replace"), re.DOTALL)
    ]
    refused: list[str] = []
    for block in blocks:
        (tmp_path / "x.yaml").write_text(block, encoding="utf-8")
        file = [Path("x.yaml")]
        try:
            check(resolve(flags={}, overrides=[], files=file, env=ENV, cwd=tmp_path))
        except ConfigError as error:
            refused.append(str(error))
    # blocks that offer one key several times, to choose from; and the actor's part of RLOO, which
    # fits n=5 alone
    assert len(blocks) == 65
    assert sum("is there twice" in message for message in refused) == 6
    assert sum("does not divide a mini-batch" in message for message in refused) == 1
    assert len(refused) == 7
