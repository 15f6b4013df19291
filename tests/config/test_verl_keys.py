"""verl's names and values, as the guides spell them, reach our settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcli.config.sources import resolve
from rlcli.config.verl_keys import (
    ENV_KEYS,
    FLAG_KEYS,
    NOT_USED,
    OWN_KEYS,
    REFUSED,
    VERL_KEYS,
    nearest,
    translate,
)
from rlcli.errors import ConfigError

TABLE = Path(__file__).with_name("guide_keys.txt")
ROWS = [
    tuple(cell.strip() for cell in line.split("|"))
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("plus", ["", "+"])
@pytest.mark.parametrize(("key", "value", "ours", "becomes"), ROWS)
def test_every_key_of_the_guides_is_read(
    key: str, value: str, ours: str, becomes: str, plus: str, tmp_path: Path
) -> None:
    resolved = resolve(flags={}, overrides=[f"{plus}{key}={value}"], files=[], env={}, cwd=tmp_path)
    if ours == "not used":
        assert [note for note in resolved.notes if note.startswith(f"not used: {key} (")]
        assert resolved.explicit == set()
        return
    assert resolved.value(ours) == json.loads(becomes)
    assert resolved.sources[ours].startswith(f"override {plus}{key}=")


def test_every_alias_leads_to_a_setting() -> None:
    targets = {
        key.removesuffix(".prompt").removesuffix(".data_source") for key in VERL_KEYS.values()
    }
    assert targets - OWN_KEYS == {"algorithm.adv_estimator"}
    for name in (*ENV_KEYS.values(), *FLAG_KEYS.values()):
        assert translate(name) is not None or name in REFUSED


def test_what_is_not_used_is_not_a_setting() -> None:
    assert not OWN_KEYS & {*NOT_USED, *REFUSED}
    assert not set(VERL_KEYS) & {*NOT_USED, *REFUSED}


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("trian.lr", "train.lr"),
        ("rollout.temprature", "rollout.temperature"),
        ("algorithm.clip_ration", "algorithm.clip_ratio"),
        ("actor_rollout_ref.rollout.nn", "actor_rollout_ref.rollout.n"),
        ("data.train_file", "data.train_files"),
        ("temprature", "rollout.temperature"),
        ("lr", "train.lr"),
        ("reward", "reward.fn"),
        ("actor.optim.lrr", "actor.optim.lr"),
    ],
)
def test_a_typo_gets_the_nearest_name(typo: str, meant: str, tmp_path: Path) -> None:
    assert (nearest(typo) or "").endswith(meant)
    with pytest.raises(ConfigError, match=rf"unknown setting {typo}.*Nearest: .*{meant}"):
        resolve(flags={}, overrides=[f"{typo}=1"], files=[], env={}, cwd=tmp_path)


def test_unknown_settings_become_one_warning_each_when_asked(tmp_path: Path) -> None:
    overrides = ["actor_rollout_ref.actor.strategy=fsdp2", "ray_kwargs.ray_init.num_cpus=4"]
    with pytest.raises(ConfigError) as caught:
        resolve(flags={}, overrides=overrides, files=[], env={}, cwd=tmp_path)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 2
    resolved = resolve(
        flags={}, overrides=overrides, files=[], env={}, cwd=tmp_path, ignore_unsupported=True
    )
    ignored = [note for note in resolved.notes if note.startswith("ignored: ")]
    assert [
        key.partition("=")[0] in note for key, note in zip(overrides, ignored, strict=True)
    ] == [
        True,
        True,
    ]


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_would_change_the_run_is_refused_with_the_cure(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not supported: "):
        resolve(flags={}, overrides=[f"{key}=x"], files=[], env={}, cwd=tmp_path)


def test_settings_with_one_reason_share_one_line(tmp_path: Path) -> None:
    overrides = ["trainer.nnodes=2", "trainer.n_gpus_per_node=8"]
    resolved = resolve(flags={}, overrides=overrides, files=[], env={}, cwd=tmp_path)
    assert resolved.notes == [
        "not used: trainer.nnodes, trainer.n_gpus_per_node (one process trains)."
    ]
