"""Text for a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcli.terminal.text import age, in_columns, short_path, wrap


def test_later_lines_begin_below_the_first_word() -> None:
    assert wrap("aaa bbb ccc", "  x: ", columns=12) == ["  x: aaa bbb", "     ccc"]
    assert wrap("") == []


def test_a_command_over_several_lines_can_be_pasted() -> None:
    assert wrap("pip install one two", line_end=" \\", columns=14) == [
        "pip install \\",
        "one two",
    ]


def test_columns_line_up_whatever_the_characters_take() -> None:
    rows = [["run", "step", "name"], ["\u6570\u636e", "7", "a long name"]]
    assert in_columns(rows, right=[1]) == ["run   step  name", "\u6570\u636e     7  a long name"]
    assert in_columns([["a", "b"], ["ccc", ""]]) == ["a    b", "ccc"]
    assert in_columns([]) == []


def test_a_path_below_is_short() -> None:
    assert short_path(Path("/a/b/c"), Path("/a")) == Path("b/c")
    assert short_path(Path("/x/y"), Path("/a")) == Path("/x/y")
    assert short_path(Path("b"), Path("/a")) == Path("b")


@pytest.mark.parametrize(
    ("seconds", "words"), [(12, "12 s"), (300, "5 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_ages_have_one_unit(seconds: float, words: str) -> None:
    assert age(seconds) == words
