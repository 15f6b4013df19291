"""Every preset resolves, changes only what differs, and holds the published values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlcli.config.presets import find_preset, list_presets, load_preset, preset_paths
from rlcli.config.resolved import Resolved
from rlcli.config.resolver import resolve
from rlcli.config.schema import defaults
from rlcli.errors import ConfigError
from rlcli.setup.checks import check

OFF: dict[str, Any] = {"kl_in_reward": False, "kl_loss": False}
IN_REWARD: dict[str, Any] = {"kl_in_reward": True, "kl_loss": False, "kl_coef": 0.001}
GROUP: dict[str, Any] = {"advantage": "grpo", **OFF}

ALGORITHMS: dict[str, tuple[int, float, dict[str, Any]]] = {
    "ppo": (1, 1e-6, {"advantage": "gae", "loss": "clip", "gamma": 1.0, "lam": 0.95, **IN_REWARD}),
    "dual_clip_ppo": (1, 1e-6, {"advantage": "gae", "clip_ratio_c": 3.0, **IN_REWARD}),
    "grpo": (
        4,
        1e-6,
        {
            "advantage": "grpo",
            "kl_in_reward": False,
            "kl_loss": True,
            "kl_loss_type": "k3",
            "kl_loss_coef": 0.001,
        },
    ),
    "dr_grpo": (
        8,
        1e-6,
        {**GROUP, "scale_by_std": False, "aggregation": "seq_mean_token_sum_norm"},
    ),
    "grpo_passk": (8, 1e-6, {"advantage": "grpo_passk", "loss": "clip", **OFF}),
    "rloo": (5, 1e-6, {"advantage": "rloo", "loss": "clip", **IN_REWARD}),
    "reinforce_plus_plus": (
        8,
        3e-6,
        {"advantage": "reinforce_plus_plus", "gamma": 1.0, **IN_REWARD},
    ),
    "reinforce_plus_plus_baseline": (
        8,
        3e-6,
        {"advantage": "reinforce_plus_plus_baseline", **IN_REWARD},
    ),
    "remax": (4, 1e-6, {"advantage": "remax", "loss": "clip", **IN_REWARD}),
    "opo": (8, 1e-6, {"advantage": "opo", "loss": "clip", **OFF}),
    "gpg": (8, 1e-6, {"advantage": "gpg", "loss": "gpg", **OFF}),
    "dapo": (16, 1e-6, {**GROUP, "dynamic_sampling": True, "overlong_penalty": True}),
    "gspo": (8, 1e-6, {**GROUP, "loss": "gspo", "aggregation": "seq_mean_token_mean"}),
    "cispo": (8, 1e-6, {**GROUP, "loss": "cispo"}),
    "gmpo": (8, 1e-6, {**GROUP, "loss": "gmpo", "aggregation": "seq_mean_token_mean"}),
    "sapo": (
        8,
        1e-6,
        {
            **GROUP,
            "loss": "sapo",
            "aggregation": "seq_mean_token_mean",
            "tau_pos": 1.0,
            "tau_neg": 1.05,
        },
    ),
    "clip_cov": (8, 1e-6, {**GROUP, "loss": "clip_cov"}),
    "kl_cov": (8, 1e-6, {**GROUP, "loss": "kl_cov", "kl_cov_ratio": 0.002, "kl_cov_coef": 1.0}),
}
CLIP = {
    "dapo": (0.2, 0.28),
    "gspo": (3e-4, 4e-4),
    "cispo": (1.0, 4.0),
    "gmpo": (0.4, 0.4),
    "clip_cov": (1.0, 1.0),
}
LARGE_STEPS = ("rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax")
PLUS_PLUS = ("reinforce_plus_plus", "reinforce_plus_plus_baseline")


def resolved(folder: Path, **arguments: Any) -> Resolved:
    given: dict[str, Any] = {"flags": {}, "overrides": [], "files": [], "env": {}, "cwd": folder}
    return resolve(**given | arguments)


def test_the_algorithms_are_all_there() -> None:
    kinds = {preset.name: preset.kind for preset in list_presets()}
    assert {name for name, kind in kinds.items() if kind == "algorithm"} == set(ALGORITHMS)
    assert {name for name, kind in kinds.items() if kind == "recipe"} >= {
        "quickstart",
        "gsm8k-0.5b",
    }


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_algorithm_has_its_published_settings(name: str, tmp_path: Path) -> None:
    n, lr, algorithm = ALGORITHMS[name]
    config = check(resolved(tmp_path, algo=name)).config
    values = config.algorithm.model_dump()
    assert config.algorithm.name == name
    assert (config.rollout.n, config.train.lr) == (n, lr)
    assert {key: values[key] for key in algorithm} == algorithm
    assert config.algorithm.clip_bounds == CLIP.get(name, (0.2, 0.2))
    if "aggregation" not in algorithm:
        assert config.algorithm.aggregation == "token_mean"


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_algorithm_has_its_published_batches(name: str, tmp_path: Path) -> None:
    config = resolved(tmp_path, algo=name).config
    train = config.train
    assert train.prompts_per_step == (1024 if name in LARGE_STEPS else 256)
    mini = 1024 if name in PLUS_PLUS else 64 if name == "gspo" else 256
    assert train.mini_batch_prompts == mini
    assert config.data.max_prompt_tokens == (1024 if name in PLUS_PLUS else 512)
    assert config.data.max_response_tokens == 1024
    assert train.epochs == (15 if name in (*PLUS_PLUS, "rloo") else 10)
    assert train.dynamic_batch
    assert train.tokens_per_micro_batch == (24_000 if name == "remax" else 16_384)
    assert (config.critic.lr, config.critic.epochs, config.critic.cliprange_value) == (1e-5, 1, 0.5)


@pytest.mark.parametrize("name", sorted(preset_paths()))
def test_a_preset_holds_only_what_differs_from_the_defaults(name: str) -> None:
    settings = load_preset(name).settings
    below = defaults()
    if "algorithm.name" in settings:
        below |= load_preset(settings["algorithm.name"]).settings
    for key, value in settings.items():
        assert value != below[key] or key == "algorithm.name", f"{name}: {key}"


@pytest.mark.parametrize("name", sorted(preset_paths()))
def test_a_preset_says_in_one_line_what_it_is(name: str) -> None:
    assert 10 < len(load_preset(name).title) <= 80


def test_quickstart_needs_neither_network_nor_files(tmp_path: Path) -> None:
    result = check(resolved(tmp_path, preset="quickstart"))
    config = result.config
    assert config.algorithm.name == "grpo"
    assert config.model.path.startswith("builtin:")
    assert all(file.startswith("builtin:") for file in (*config.data.train, *config.data.val))
    assert config.train.max_steps is not None
    assert result.sources["rollout.n"] == "recipe quickstart"
    assert result.sources["algorithm.advantage"] == "preset grpo"


def test_without_arguments_ppo_trains_the_small_model(tmp_path: Path) -> None:
    config = check(resolved(tmp_path)).config
    assert (config.algorithm.name, config.algorithm.advantage) == ("ppo", "gae")
    assert config.model.path == "Qwen/Qwen2.5-0.5B"


@pytest.mark.parametrize(
    "name", ["../presets/ppo", "/etc/passwd", "ppo\0", "sub/ppo", "..", "", "presets\\ppo"]
)
def test_a_name_cannot_leave_the_folder(name: str) -> None:
    assert find_preset(name) is None
    with pytest.raises(ConfigError, match="no preset"):
        load_preset(name)


def test_an_unknown_preset_gets_the_nearest_names(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no preset 'quikstart' \(from flag --preset\).*quickstart"
    ):
        resolved(tmp_path, preset="quikstart")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("DrGRPO", "dr_grpo"),
        ("GRPO_PASSK", "grpo_passk"),
        ("OPO", "opo"),
        ("GPG", "gpg"),
        ("Dual-clip PPO", "dual_clip_ppo"),
        ("REINFORCE++", "reinforce_plus_plus"),
        ("REINFORCE++-Baseline", "reinforce_plus_plus_baseline"),
        ("ReMax", "remax"),
        ("gae", "ppo"),
    ],
)
@pytest.mark.parametrize("how", ["--algo", "algorithm.adv_estimator"])
def test_names_of_the_guides_select_their_preset(
    written: str, name: str, how: str, tmp_path: Path
) -> None:
    if how == "--algo":
        config = resolved(tmp_path, algo=written).config
    else:
        config = resolved(tmp_path, overrides=[f"{how}={written}"]).config
    assert config.algorithm.name == name
