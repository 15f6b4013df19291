"""verl's names and values, as the guides spell them, reach our settings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from rlcli.compat.verl.keys import NOT_USED
from rlcli.config.names import (
    ALIASES,
    ENV_KEYS,
    FLAG_KEYS,
    MAPPING_KEYS,
    OWN_KEYS,
    REFUSED,
    RENAMED,
    translate,
)
from rlcli.config.peer_names import nearest
from rlcli.config.resolved import Resolved
from rlcli.config.resolver import resolve
from rlcli.errors import ConfigError

TABLE = Path(__file__).with_name("guide_keys.txt")
ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT.parent / "shared" / "guides"


class Row(NamedTuple):
    name: str
    value: str
    ours: str
    becomes: str


ROWS = [
    Row(*(cell.strip() for cell in line.split("|")))
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
FLAGS = [row for row in ROWS if row.name.startswith("--")]
VARIABLES = [row for row in ROWS if row.name.startswith("env ")]
KEYS = [row for row in ROWS if row not in FLAGS and row not in VARIABLES]
SETTINGS = [row for row in VARIABLES if row.ours in OWN_KEYS]


def check_row(row: Row, resolved: Resolved, origin: str) -> None:
    if row.ours == "not used":
        assert [note for note in resolved.notes if note.startswith(f"not used: {row.name} (")]
        assert resolved.explicit == set()
        return
    assert resolved.value(row.ours) == json.loads(row.becomes)
    assert resolved.sources[row.ours].startswith(origin)


@pytest.mark.parametrize("plus", ["", "+"])
@pytest.mark.parametrize("row", KEYS, ids=lambda row: row.name)
def test_every_key_of_the_guides_is_read(row: Row, plus: str, run: Any) -> None:
    origin = f"override {plus}{row.name}="
    check_row(row, run(f"{plus}{row.name}={row.value}"), origin)


@pytest.mark.parametrize("is_nested", [True, False])
@pytest.mark.parametrize("row", KEYS, ids=lambda row: row.name)
def test_every_key_of_the_guides_is_read_from_a_file(row: Row, is_nested: bool, run: Any) -> None:
    *above, last = row.name.split(".") if is_nested else [row.name]
    indents = ["  " * depth for depth in range(len(above) + 1)]
    lines = [f"{indent}{name}:" for indent, name in zip(indents, above, strict=False)]
    file = "\n".join([*lines, f"{indents[-1]}{last}: {row.value}  # a comment"])
    check_row(row, run(file=file), "file x.yaml")


@pytest.mark.parametrize("row", FLAGS, ids=lambda row: f"{row.name} {row.value}")
def test_every_flag_of_the_guides_is_a_setting(row: Row, run: Any) -> None:
    name = row.name.removeprefix("--")
    value = True if row.value == "true" else row.value
    check_row(row, run(flags={name: value}), f"flag {row.name}")


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.name)
def test_every_variable_of_the_guides_is_read(row: Row, run: Any) -> None:
    check_row(row, run(env={row.name.removeprefix("env "): row.value}), row.name)


@pytest.mark.parametrize("row", [r for r in VARIABLES if r not in SETTINGS], ids=lambda r: r.name)
def test_every_other_variable_of_the_guides_has_a_reader_and_is_never_written(
    row: Row, run: Any
) -> None:
    name = row.name.removeprefix("env ")
    place = {"key": "rewards/judge/*.py", "launch": "distributed/process_count.py"}[row.ours]
    assert any(name in path.read_text("utf-8") for path in (ROOT / "rlcli").glob(place))
    resolved = run(env={name: row.value})
    assert row.ours == "launch" or row.value not in str(resolved)


SPOKEN = re.compile(
    r"(?:algorithm|data|actor_rollout_ref|critic|trainer|composite_reward|rollout|actor)"
    r"(?:\.[a-z_]+)+(?=[=:\s`])"
)
NO_KEYS = {"trainer.main_ppo", "trainer.yaml"}
NO_SETTINGS = {"--config-name", "--local_dir"}
"""Options of the guides that name files; `data prepare` and `train` have them."""


def test_the_table_has_every_name_that_the_guides_say() -> None:
    if not GUIDES.is_dir():
        pytest.skip("the guides are not here: put them into ../shared/guides")
    known = {row.name for row in ROWS}
    for path in GUIDES.glob("*.md"):
        text = path.read_text(encoding="utf-8", errors="replace")
        said = set(SPOKEN.findall(text)) - NO_KEYS
        said |= {f"--{name}" for name in re.findall(r"--([a-z][a-z_-]+)", text)} - NO_SETTINGS
        said |= {f"env {name}" for name in re.findall(r"`([A-Z]+_[A-Z_]+)`", text)}
        said |= {f"env {name}" for name in re.findall(r"\b([A-Z]+_[A-Z_]+|NNODES)=", text)}
        for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL):
            said |= yaml_keys(yaml.safe_load(block))
        assert not said - known, f"{path.name}: {sorted(said - known)}"


def yaml_keys(content: Any, above: str = "") -> set[str]:
    if not isinstance(content, dict):
        return {above}
    inner = (yaml_keys(value, f"{above}.{key}".lstrip(".")) for key, value in content.items())
    return set().union(*inner) - {"defaults"}


def test_every_alias_leads_to_a_setting() -> None:
    targets = {
        next((group for group in MAPPING_KEYS if key.startswith(f"{group}.")), key)
        for key in ALIASES.values()
    }
    assert targets - OWN_KEYS == {"algorithm.adv_estimator", "custom_reward_function.name"}
    for name in (*ENV_KEYS.values(), *FLAG_KEYS.values()):
        assert translate(name) is not None or name in REFUSED


def test_what_is_not_used_is_not_a_setting() -> None:
    assert not OWN_KEYS & {*NOT_USED, *REFUSED}
    assert not set(ALIASES) & {*NOT_USED, *REFUSED}


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("trian.lr", "train.lr"),
        ("rollout.temprature", "rollout.temperature"),
        ("algorithm.clip_ration", "algorithm.clip_ratio"),
        ("actor_rollout_ref.rollout.nn", "actor_rollout_ref.rollout.n"),
        ("data.train_file", "data.train_files"),
        ("temprature", "rollout.temperature"),
        ("lrr", "lr"),
        ("rewrd", "reward.fn"),
        ("actor.optim.lrr", "actor.optim.lr"),
    ],
)
def test_a_typo_gets_the_nearest_name(typo: str, meant: str, tmp_path: Path) -> None:
    assert (nearest(typo) or "").endswith(meant)
    with pytest.raises(ConfigError) as caught:
        resolve(flags={}, overrides=[f"{typo}=1"], files=[], env={}, cwd=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"unknown setting {typo}")
    assert meant in message or str(translate(meant)) in message


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
    rows = "log_prob_micro_batch_size_per_gpu"
    overrides = [f"actor_rollout_ref.{part}.{rows}=16" for part in ("rollout", "ref")]
    resolved = resolve(flags={}, overrides=overrides, files=[], env={}, cwd=tmp_path)
    assert resolved.notes == [
        f"not used: actor_rollout_ref.rollout.{rows}, actor_rollout_ref.ref.{rows} "
        "(passes without gradients use the training micro-batch size)."
    ]


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_of_a_setting_still_works_and_the_new_one_is_named(
    run: Any, old: str, new: str
) -> None:
    value = "true" if new.endswith("logprobs") else "3"
    resolved = run(f"{old}={value}")
    assert str(resolved.value(new)).lower() == value
    assert any(old in note and new in note for note in resolved.notes)
    assert run(f"{new}={value}").config == resolved.config
