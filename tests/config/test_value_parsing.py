"""Values as hydra users, shells and YAML files write them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcli.config.value_parsing import (
    MAX_FILE_BYTES,
    MAX_SHOWN,
    expand,
    flatten,
    load_yaml,
    one_line,
    parse_value,
)
from rlcli.errors import ConfigError

ENV = {"HOME": "/home/ann", "N": "8"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("true", True),
        ("False", False),
        ("1e-6", 1e-6),
        ("5E-7", 5e-7),
        ("-1", -1),
        ("0.95", 0.95),
        (".5", 0.5),
        ("24_000", 24000),
        ("0_.7", "0_.7"),
        ("1__0", "1__0"),
        ("1" * 5000, "1" * 5000),
        ("null", None),
        ("None", None),
        ("~", None),
        ("'42'", "42"),
        ('"a b"', "a b"),
        ("['a','b']", ["a", "b"]),
        ('["console","wandb"]', ["console", "wandb"]),
        ("[console,wandb]", ["console", "wandb"]),
        ("[1e-6, no]", [1e-6, "no"]),
        ("{a: 1, b: x}", {"a": 1, "b": "x"}),
        ("{a:1,b:2}", {"a": 1, "b": 2}),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0.99          # add gamma", 0.99),
        ("rloo # estimator", "rloo"),
        ("['a'] # two", ["a"]),
        ("a#b", "a#b"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
    ],
)
def test_text_means_what_hydra_users_expect(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["['a'", "{a: 1", "'open", "[a]]"])
def test_unclosed_value_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        parse_value(text)


@given(st.text(max_size=20))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_value(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_survives_its_own_spelling(number: float) -> None:
    assert parse_value(repr(number)) == number


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$HOME/data/train.parquet", "/home/ann/data/train.parquet"),
        ("${HOME}/data", "/home/ann/data"),
        ("~/data", "/home/ann/data"),
        ("a~/b", "a~/b"),
        ("${oc.env:HOME}/x", "/home/ann/x"),
        ("${oc.env:NOWHERE,/tmp}/x", "/tmp/x"),
        ("$NOWHERE/x", "$NOWHERE/x"),
        ("${model.path}", "${model.path}"),
    ],
)
def test_environment_fills_in_names_it_has(text: str, expanded: str) -> None:
    assert expand(text, ENV) == expanded


def test_lists_are_expanded_item_by_item() -> None:
    assert expand(["$HOME/a", 1], ENV) == ["/home/ann/a", 1]


def _write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_reads_small_floats_and_keeps_words(tmp_path: Path) -> None:
    path = _write(tmp_path, "a: 1e-6\nb: no\nc: on\nd: True\ne:\nf: 'no'\nyes: 1  # comment\n")
    assert load_yaml(path) == {
        "a": 1e-6,
        "b": "no",
        "c": "on",
        "d": True,
        "e": None,
        "f": "no",
        "yes": 1,
    }


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml:3.*lr is there twice"):
        load_yaml(_write(tmp_path, "train:\n  lr: 1\n  lr: 2\n"))


def test_dotted_keys_inside_a_mapping_are_the_same_as_nesting(tmp_path: Path) -> None:
    path = _write(tmp_path, "algorithm:\n  kl_ctrl.kl_coef: 0.001\n  kl_ctrl:\n    type: fixed\n")
    assert flatten(load_yaml(path)) == {
        "algorithm.kl_ctrl.kl_coef": 0.001,
        "algorithm.kl_ctrl.type": "fixed",
    }


def test_two_spellings_of_one_key_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"a\.b is there twice"):
        flatten({"a.b": 1, "a": {"b": 2}})


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "- a\n- b\n",
        "just words",
        "a: !!python/object/apply:os.getcwd []",
        "? [a]\n: 1",
        "a: &a [*a]",
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{c}: &{c} [{', '.join([f'*{p}'] * 10)}]\n"
            for p, c in zip("abcde", "bcdef", strict=True)
        ),
    ],
)
def test_a_file_that_is_not_settings_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_yaml(_write(tmp_path, text))


def test_missing_binary_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_yaml(tmp_path / "none.yaml")
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_yaml(binary)
    with pytest.raises(ConfigError, match="not a config file"):
        load_yaml(_write(tmp_path, "#" * (MAX_FILE_BYTES + 1)))
    with pytest.raises(ConfigError, match="cannot read"):
        load_yaml(tmp_path)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert load_yaml(_write(tmp_path, "# nothing\n")) == {}


@given(st.text())
def test_text_for_a_message_is_one_printable_line(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert len(shown) <= MAX_SHOWN + 3


def test_a_tag_that_does_not_fit_its_value_is_a_mistake_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: !!int x\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: cannot read this YAML"):
        load_yaml(path)
