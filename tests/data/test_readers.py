"""Every accepted form of a row, and what is said about every bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlcli.data.files import BUILTIN
from rlcli.data.readers import Row, read_rows, scan_rows
from rlcli.errors import DataError

SIMPLE = {"prompt": "计算 15 + 27", "ground_truth": "42", "data_source": "math_reasoning"}
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0},
}


def write(path: Path, rows: list[Any]) -> str:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl"])
def test_simple_and_verl_rows_are_read_from_every_format(tmp_path: Path, suffix: str) -> None:
    simple = write(tmp_path / f"simple{suffix}", [SIMPLE])
    verl = write(tmp_path / f"verl{suffix}", [VERL])
    assert read_rows([simple, verl]) == [
        Row(
            id=f"simple{suffix}:1",
            prompt="计算 15 + 27",
            ground_truth="42",
            data_source="math_reasoning",
            columns=SIMPLE,
        ),
        Row(
            id=f"verl{suffix}:1",
            prompt=({"role": "user", "content": "1+1?"},),
            ground_truth="2",
            data_source="openai/gsm8k",
            extra_info={"split": "train", "index": 0},
            columns=VERL,
        ),
    ]


def test_fields_name_the_columns_nested_ones_too(tmp_path: Path) -> None:
    rows = [{"question": "1+1?", "gold": {"answer": 2}, "data_source": "exact"}]
    path = write(tmp_path / "a.jsonl", rows)
    (row,) = read_rows([path], fields={"prompt": "question", "ground_truth": "gold.answer"})
    assert (row.prompt, row.ground_truth) == ("1+1?", 2)


def test_a_whole_file_may_do_without_ground_truth_and_data_source(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    assert [(r.ground_truth, r.data_source) for r in read_rows([path])] == [(None, "")] * 2


def test_jsonl_ids_are_line_numbers_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"prompt": "a"}\r\n\r\n{"prompt": "b\\u2028c\xe2\x80\xa8d"}')
    rows = read_rows([str(path)])
    assert [(row.id, row.prompt) for row in rows] == [
        ("a.jsonl:2", "a"),
        ("a.jsonl:4", "b\u2028c\u2028d"),
    ]


def test_ids_stay_unique_across_files_of_one_name(tmp_path: Path) -> None:
    sources: list[str] = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        sources.append(write(tmp_path / folder / "a.jsonl", [SIMPLE]))
    rows = read_rows([*sources, sources[1]])
    assert [row.id for row in rows] == ["x/a.jsonl:1", "y/a.jsonl#1:1", "y/a.jsonl#2:1"]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([SIMPLE]).encode())
    assert len(read_rows([str(path)])) == 1


def test_home_variables_and_base_are_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.jsonl", [SIMPLE])
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("$HOME/a.jsonl", "~/a.jsonl", "${HOME}/a.jsonl"):
        assert len(read_rows([source])) == 1
    assert len(read_rows(["a.jsonl"], base=tmp_path)) == 1
    with pytest.raises(DataError, match="the variable NO_SUCH is not set"):
        read_rows(["$NO_SUCH/a.jsonl"])


def test_an_unknown_builtin_gets_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"builtin:sum \(nearest: sums"):
        read_rows(["builtin:sum"])
    assert "math_reasoning" in BUILTIN


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"promt": "a"}, "field 'prompt' is missing; the row has promt (nearest: promt)"),
        ({"prompt": None}, "field 'prompt' is null"),
        ({"prompt": "  "}, "field 'prompt' is empty"),
        ({"prompt": 3}, "field 'prompt' is a number (3), expected text or a list"),
        ({"prompt": []}, "field 'prompt' is an empty list"),
        ({"prompt": ["a"]}, "field 'prompt[0]' is text, expected a message"),
        (
            {"prompt": [{"role": "usr", "content": "a"}]},
            "field 'prompt[0].role' is 'usr' (nearest: user), expected one of system, user",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "field 'prompt[0].content[0]' is a part of type 'image'",
        ),
        ({"prompt": [{"role": "user", "content": ""}]}, "field 'prompt[0].content' is empty"),
        ({"prompt": "a\ud800"}, "half of a surrogate pair at character 1"),
        ({"prompt": "a", "extra_info": {"x": "\ud800"}}, "field 'extra_info' has half of a"),
        ({"prompt": "a", "data_source": 3}, "field 'data_source' is 3"),
        ({"prompt": "a", "extra_info": "x"}, "field 'extra_info' is text, expected an object"),
        (["a"], "found a list, expected an object with a prompt"),
    ],
)
def test_a_bad_row_is_named_with_line_and_field(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "a.jsonl"
    good = {"prompt": "a"} | ({"data_source": "x"} if "data_source" in row else {})
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_rows([str(path)])
    assert str(caught.value).startswith("a.jsonl:2: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("field", ["ground_truth", "data_source"])
def test_a_field_that_other_rows_have_must_not_be_missing(tmp_path: Path, field: str) -> None:
    rows = [SIMPLE, {key: value for key, value in SIMPLE.items() if key != field}]
    with pytest.raises(DataError, match=f"a.parquet:2: field '{field}' is null"):
        read_rows([write(tmp_path / "a.parquet", rows)])
    with pytest.raises(DataError, match=f"a.jsonl:2: field '{field}' is missing"):
        read_rows([write(tmp_path / "a.jsonl", rows)])


def test_a_mapped_column_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [SIMPLE])
    with pytest.raises(DataError, match=r"field 'anser' is missing.*fields\.ground_truth"):
        read_rows([path], fields={"ground_truth": "anser"})
    with pytest.raises(DataError, match=r"data.fields.promt is no field \(nearest: prompt"):
        read_rows([path], fields={"promt": "question"})


def test_all_bad_rows_are_counted_and_the_scan_keeps_every_message(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n' + "{broken\n" * 5, encoding="utf-8")
    scan = scan_rows([str(path)])
    assert [row.id for row in scan.rows] == ["a.jsonl:1"]
    assert len(scan.errors) == 5
    with pytest.raises(DataError) as caught:
        read_rows([str(path)])
    assert str(caught.value).count("not JSON") == 3
    assert str(caught.value).endswith("... and 2 more bad rows.")


@pytest.mark.parametrize(
    "row",
    [
        '{"a\\nb\\ud800": 1}',
        '{"prompt": [{"role": "a\\nb\\u001b[2J", "content": ""}]}',
        '{"prompt": ' + "9" * 4000 + "}",
        "{" + ", ".join(f'"column {i}": 1' for i in range(500)) + "}",
        '{"prompt": "a", "extra_info": ' + '{"a":' * 960 + "1" + "}" * 961,
    ],
)
def test_the_message_of_a_hostile_row_is_one_short_printable_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{row}')
    for error in scan_rows([str(path)]).errors:
        assert error.startswith("a.jsonl:2: ")
        assert error.isprintable()
        assert len(error) < 700
