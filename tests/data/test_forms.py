"""Rows as public data sets and other tools store them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlcli.data.readers import Reading, Row, Scan, read_rows, read_scan, scan_rows
from rlcli.errors import DataError

USER = {"role": "user", "content": "What is 2+3?"}
HH = "\n\nHuman: How do I bake bread?\n\nAssistant: Mix flour.\n\nHuman: And then?"


def read(folder: Path, *records: Any, **how: Any) -> Scan:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return read_scan([str(path)], Reading(**how))


def one(folder: Path, record: Any, **how: Any) -> Row:
    (row,) = read(folder, record, **how).rows
    return row


@pytest.mark.parametrize(
    "prompt",
    [
        [USER],
        USER,
        {"messages": [USER]},
        json.dumps([USER]),
        json.dumps({"messages": [USER]}),
        f"  {json.dumps(USER)}\n",
        [{"role": "human", "content": "What is 2+3?"}],
        [{"from": "human", "value": "What is 2+3?"}],
        [{"role": "User", "content": [{"type": "text", "text": "What is 2+3?"}]}],
        [{"role": "user", "content": [{"text": "What is "}, {"type": "text", "text": "2+3?"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "What is 2+3?", "image": None}]}],
        [{**USER, "tool_calls": None, "images": [], "loss": True}],
    ],
)
def test_one_user_message_in_every_form_is_the_same_prompt(tmp_path: Path, prompt: Any) -> None:
    assert one(tmp_path, {"prompt": prompt}).prompt == (USER,)


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user"}]',
        "[1, 2, 3]",
        '{"a": 1} is a dict. What is its length?',
        "[{broken",
        '{"question": "x"}',
    ],
)
def test_json_that_is_no_message_is_the_question_itself(tmp_path: Path, text: str) -> None:
    assert one(tmp_path, {"prompt": text}).prompt == text


@pytest.mark.parametrize(
    ("record", "prompt", "gold"),
    [
        (
            {"instruction": "Add the numbers", "input": "2 and 2", "output": "4"},
            "Add the numbers\n\n2 and 2",
            "4",
        ),
        ({"instruction": "Name a color", "input": "", "output": "red"}, "Name a color", "red"),
        ({"query": "1+1?", "response": "2"}, "1+1?", "2"),
        ({"question": "How many?", "answer": "3+4=7\n#### 1,007"}, "How many?", "1007"),
        ({"question": "Who?", "golden_answers": ["a", "b"]}, "Who?", ["a", "b"]),
        ({"problem": "2+2?", "solution": "So \\boxed{4}", "answer": "4"}, "2+2?", "4"),
        ({"problem": "2+2?", "solution": "So \\boxed{4}"}, "2+2?", "So \\boxed{4}"),
        ({"prompt": "2+2?", "solution": "4"}, "2+2?", "4"),
        ({"messages": [USER], "solution": "5"}, (USER,), "5"),
        ({"messages": [USER, {"role": "assistant", "content": "5"}]}, (USER,), "5"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "What is 2+3?"},
                    {"from": "gpt", "value": "5"},
                ]
            },
            (USER,),
            "5",
        ),
        (
            {"chosen": f"{HH}\n\nAssistant: Wait.", "rejected": f"{HH}\n\nAssistant: No."},
            (
                {"role": "user", "content": "How do I bake bread?"},
                {"role": "assistant", "content": "Mix flour."},
                {"role": "user", "content": "And then?"},
            ),
            "Wait.",
        ),
        (
            {"question_content": "Double x.", "starter_code": "def f(x):\n", "platform": "x",
             "public_test_cases": "[]"},
            "Double x.\n\nComplete this code:\n```python\ndef f(x):\n```",
            "[]",
        ),
        (
            {"question": "Print 1.", "input_output": '{"inputs": []}', "starter_code": ""},
            "Print 1.",
            '{"inputs": []}',
        ),
        (
            {"query": "And 3?", "history": [["2?", "4"]], "system": "Be brief.", "response": "6"},
            (
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "2?"},
                {"role": "assistant", "content": "4"},
                {"role": "user", "content": "And 3?"},
            ),
            "6",
        ),
        (
            {"data_source": "nq", "prompt": [USER], "golden_answers": ["x"],
             "reward_model": {"ground_truth": {"target": ["y"]}}},
            (USER,),
            {"target": ["y"]},
        ),
        (
            {"prompt": [USER], "reward_model": '{"style": "rule", "ground_truth": "5"}'},
            (USER,),
            "5",
        ),
    ],
)  # fmt: skip
def test_public_layouts_are_read_without_a_mapping(
    tmp_path: Path, record: Any, prompt: Any, gold: Any
) -> None:
    row = one(tmp_path, record)
    assert (row.prompt, row.ground_truth) == (prompt, gold)


def test_a_column_chosen_without_the_users_word_is_named(tmp_path: Path) -> None:
    notes = read(tmp_path, {"problem": "a", "answer": "1"}, {"problem": "b", "answer": "2"}).notes
    assert notes == [
        "the prompt is read from column problem (rows: 2, first: rows.jsonl:1)",
        "ground_truth is read from column answer (rows: 2, first: rows.jsonl:1)",
    ]
    mapped = {"prompt": "problem", "ground_truth": "answer"}
    assert read(tmp_path, {"problem": "a", "answer": "1"}, fields=mapped).notes == []


def test_layouts_may_be_mixed_in_one_file(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        {"prompt": "a", "ground_truth": "1"},
        {"instruction": "b", "output": "2"},
        {"problem": "c", "answer": "3", "prompt": None},
        {"messages": [USER, {"role": "assistant", "content": "4"}]},
    ).rows
    assert [row.ground_truth for row in rows] == ["1", "2", "3", "4"]


PREFILL = [USER, {"role": "assistant", "content": "Let me think.\n<think>"}]


def test_a_last_assistant_message_of_a_prompt_is_kept_to_be_continued_and_reported(
    tmp_path: Path,
) -> None:
    scan = read(tmp_path, {"prompt": PREFILL, "ground_truth": "5"})
    assert scan.rows[0].prompt == tuple(PREFILL)
    assert len(scan.notes) == 1
    assert "data.drop_last_assistant=true" in scan.notes[0]


def test_the_setting_drops_it_or_keeps_it_everywhere(tmp_path: Path) -> None:
    row = one(tmp_path, {"prompt": PREFILL, "ground_truth": "5"}, drop_last_assistant=True)
    assert (row.prompt, row.ground_truth) == ((USER,), "5")
    row = one(tmp_path, {"messages": PREFILL}, drop_last_assistant=False)
    assert (row.prompt, row.ground_truth) == (tuple(PREFILL), None)


def test_an_assistant_message_that_is_the_ground_truth_is_not_left_in_the_prompt(
    tmp_path: Path,
) -> None:
    answered = [USER, {"role": "assistant", "content": " 5 "}]
    assert one(tmp_path, {"prompt": answered, "ground_truth": 5}).prompt == (USER,)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "a", "images": [{"bytes": "x", "path": None}]}, "column 'images'"),
        ({"prompt": "a", "image": "cat.png"}, "column 'image'"),
        ({"prompt": "a", "videos": ["a.mp4"]}, "column 'videos'"),
        ({"prompt": "a", "audio": {"array": [0.5]}}, "column 'audio'"),
        ({"problem": "a", "answer": "1", "images": ["x"]}, "column 'images'"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}, {"text": "a"}]}]},
            "part of type 'image'",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "input_audio", "data": "x"}]}]},
            "part of type 'input_audio'",
        ),
        ({"prompt": [{**USER, "images": ["x"]}]}, "column 'images'"),
        ({"prompt": [USER, {"role": "gpt", "content": "", "tool_calls": [{"a": 1}]}]}, "tool cal"),
        ({"prompt": [{"role": "system", "content": "a"}]}, "no user message"),
        ({"prompt": [{"role": "user", "content": None}]}, "is null, expected text"),
        ({"prompt": {"a": 1}}, "is an object, expected text or a list"),
        ({"prompt": [USER, "b"]}, "field 'prompt[1]' is text, expected a message"),
        ({"target": 98, "nums": [44, 54]}, "data.prompt_template="),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(tmp_path: Path, record: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, record)
    assert str(caught.value).startswith("rows.jsonl:1")
    assert words in str(caught.value)


def test_empty_media_columns_are_no_images(tmp_path: Path) -> None:
    for empty in (None, [], "", [None], {"bytes": None, "path": None}):
        assert one(tmp_path, {"prompt": "<image> tags in HTML?", "images": empty}).prompt


def test_lists_of_messages_in_parquet_are_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"prompt": [USER], "images": None, "extra_info": '{"index": 3}'},
        {"prompt": PREFILL, "images": [], "extra_info": '{"index": 4}'},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read_rows([str(tmp_path / "a.parquet")])
    assert (first.prompt, first.extra_info) == ((USER,), {"index": 3})
    assert second.prompt == tuple(PREFILL)


def test_a_template_joins_columns_in_one_pass(tmp_path: Path) -> None:
    record = {"question": "What is {context}?", "context": "the {question}", "nums": [1, 2]}
    template = "{question}\n\n{context} {nums} \\boxed{} {{question}} \\frac{1}{2}"
    assert one(tmp_path, record, template=template).prompt == (
        "What is {context}?\n\nthe {question} [1, 2] \\boxed{} {question} \\frac{1}{2}"
    )


def test_a_template_reaches_mapped_and_nested_columns(tmp_path: Path) -> None:
    record = {"q": "a", "more": {"hint": "b"}, "output": "c"}
    template = "{prompt}: {more.hint}"
    assert one(tmp_path, record, template=template, fields={"prompt": "q"}).prompt == "a: b"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question": "a", "contxt": "b"}, "has no column 'context' (nearest: contxt"),
        ({"question": "a", "context": None}, "field 'context' has no value"),
        ({"question": [USER], "context": "b"}, "holds chat messages"),
    ],
)
def test_a_template_without_its_columns_is_refused(tmp_path: Path, record: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, record, template="{question} {context}")
    assert words in str(caught.value)


CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "data"
READ = (
    "alpaca", "apps", "content_parts_text", "ds_path", "dups", "gsm8k_raw", "hh", "lcb", "mbpp",
    "openr1_math", "prefill", "pretemplated", "prompt_json_string", "sharegpt", "sixteen",
    "trl_solution", "two", "ultrafeedback", "uni",
)  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_public_rows_are_read(name: str) -> None:
    path = CASES / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("the cases are not here: put them into ../shared/cases")
    scan = scan_rows([str(path)])
    assert scan.rows
    assert not scan.errors
