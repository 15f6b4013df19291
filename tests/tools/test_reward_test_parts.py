"""A reward on answers whose worth is known: rows, responses, labels and the numbers."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcli.data.readers import Row, read_rows
from rlcli.errors import DataError
from rlcli.tools.reward_test.labels import read_label
from rlcli.tools.reward_test.measures import (
    agreement,
    auc,
    mean_ranks,
    quantile,
    repeatability,
    spearman,
)
from rlcli.tools.reward_test.responses import Given, read_responses
from rlcli.tools.reward_test.rows import OtherAnswers, answer_key, own_answers

BLANK: dict[str, str] = {}


def row(answer: Any, source: str = "s", **extra: Any) -> Row:
    return Row(id=f"a:{answer}", prompt="?", ground_truth=answer, data_source=source,
               extra_info=extra)  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# The numbers.


def test_auc_is_the_share_of_pairs_in_order_and_half_of_the_ties() -> None:
    # pairs (label 1, label 0): 3>1, 3>2, 2>1, 2=2
    assert auc([1, 1, 0, 0], [3, 2, 1, 2]) == 3.5 / 4
    assert auc([1, 0], [0, 1]) == 0.0
    assert auc([1, 1], [0, 1]) is None
    assert auc([], []) is None
    # labels 1 2 3: (2 over 1), (3 over 1), (3 over 2) with scores 5 4 6
    assert auc([1, 2, 3], [5, 4, 6]) == pytest.approx(2 / 3)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30))
def test_auc_is_what_counting_all_pairs_gives(pairs: list[tuple[int, int]]) -> None:
    won = [
        (a > b) + (a == b) / 2 for high, a in pairs for low, b in pairs if high > low
    ]  # fmt: skip
    found = auc([label for label, _ in pairs], [score for _, score in pairs])
    assert found == (pytest.approx(statistics.fmean(won)) if won else None)


def test_ranks_share_their_mean_and_spearman_correlates_them() -> None:
    assert mean_ranks([10, 30, 10, 20]) == [1.5, 4, 1.5, 3]
    assert spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    # ranks 1 2 3 and 1 3 2: 1 - 6 * 2 / (3 * 8)
    assert spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert spearman([1, 1, 1], [1, 3, 2]) is None


def test_agreement_quantile_and_repeatability() -> None:
    assert agreement([1, 0, 1, 0], [True, True, True, False]) == 0.75
    assert agreement([], []) is None
    assert quantile([5, 1, 4, 2, 3], 0.95) == 5
    assert quantile([float(n) for n in range(1, 101)], 0.95) == 95
    assert quantile([], 0.95) is None
    assert repeatability([[1, 1], [0.5, 0.25, 0.5], [1]]) == (0.5, 0.25)
    assert repeatability([[1]]) is None


# Rows.


def test_the_other_answer_is_the_next_that_differs_and_the_last_row_starts_over() -> None:
    cases = own_answers([row("1"), row("1.0"), row("2"), row("3")])
    answers = OtherAnswers(cases)
    assert [answers.next(at) for at in range(4)] == [2, 2, 3, 0]
    assert answers.next(3, ["1"]) == 2
    assert answers.next(3, ["1", "2"]) is None


def test_other_answers_are_of_the_same_data_source_where_it_has_any() -> None:
    cases = own_answers([row("1", "a"), row("2", "b"), row("3", "a"), row("2", "b")])
    answers = OtherAnswers(cases)
    assert answers.next(0) == 2
    # both rows of b have one answer: any other row will do
    assert answers.next(1) == 2
    assert OtherAnswers(own_answers([row("1"), row("1")])).next(0) is None


@given(st.lists(st.sampled_from(["1", "2", "2.0", "x"]), min_size=1, max_size=12))
def test_an_other_answer_is_never_the_own_one(answers: list[str]) -> None:
    cases = own_answers([row(answer) for answer in answers])
    others = OtherAnswers(cases)
    for at, case in enumerate(cases):
        found = others.next(at)
        keys = {answer_key(answer) for answer in answers}
        assert (found is None) == (len(keys) == 1)
        assert found is None or answer_key(cases[found].response) != answer_key(case.response)


def test_spellings_of_one_number_are_one_answer() -> None:
    assert answer_key("1,042") == answer_key("$1042.0") == answer_key("1042.")
    assert answer_key("A  b") == answer_key("a b")
    assert answer_key("nan") == "nan"
    assert answer_key("12") != answer_key("1.2")


def test_a_program_is_tried_in_place_of_the_tests_it_passes() -> None:
    tests = row("assert f() == 1", "code", canonical_solution="def f(): return 1")
    (case,) = own_answers([tests], runs_code={"code"})
    assert case.response == "def f(): return 1"
    with pytest.raises(DataError, match=r"canonical_solution.*\n.*--responses FILE"):
        own_answers([row("assert f() == 1", "code")], runs_code={"code"})


def test_a_gold_that_holds_no_tests_is_told_before_programs_are_asked_for() -> None:
    with pytest.raises(DataError, match=r"a:18: ground_truth has no tests.*\(rule code\)"):
        own_answers([row("18", "code")], runs_code={"code"})


def test_a_row_without_ground_truth_points_to_responses() -> None:
    with pytest.raises(DataError, match=r"a:None has no ground_truth.*\n.*--responses FILE"):
        own_answers([row(None)])


def test_answers_that_are_no_text_are_written_down() -> None:
    cases = own_answers([row(42), row(["Paris"]), row({"x": "é"})])
    assert [case.response for case in cases] == ["42", "Paris", '{"x": "é"}']


# Labels.


@pytest.mark.parametrize(
    ("value", "label"),
    [(True, 1), (False, 0), (1, 1), (0.25, 0.25), ("3.5", 3.5), ("Good", 1), ("incorrect", 0),
     ("是", 1), ("否", 0), (" 不正确 ", 0)],
)  # fmt: skip
def test_a_label_is_a_boolean_a_number_or_a_word(value: Any, label: float) -> None:
    assert read_label(value, "f:1: ok") == label


@pytest.mark.parametrize("value", ["so-so", [1], float("nan"), {}])
def test_another_label_is_refused_with_its_row(value: Any) -> None:
    with pytest.raises(DataError, match=r"f:1: ok is .*expected true or false, a number"):
        read_label(value, "f:1: ok")


# Responses.


def read(source: str, rows: list[Row] | None = None, **options: Any) -> Given:
    options = {"fields": BLANK, "data": ["data.jsonl"]} | options
    return read_responses(source, None if rows is None else (lambda: rows), **options)


def test_whole_rows_need_no_data(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [
        {"prompt": "1+1?", "ground_truth": "2", "response": "2", "ok": True},
        {"prompt": "2+2?", "ground_truth": "4", "response": "5", "ok": None},
    ])  # fmt: skip
    found = read(file, label="ok")
    assert [case.row.ground_truth for case in found.cases] == ["2", "4"]
    assert [case.response for case in found.cases] == ["2", "5"]
    assert [case.label for case in found.cases] == [1.0, None]
    assert len(read(file, limit=1).cases) == 1


@pytest.mark.parametrize("column", ["solution_str", "completion", "output", "answer"])
def test_responses_may_be_called_otherwise(tmp_path: Path, column: str) -> None:
    file = write(tmp_path / "r.jsonl", [{"prompt": "?", column: "x"}])
    assert [case.response for case in read(file).cases] == ["x"]
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "y"}]
    file = write(tmp_path / "r.jsonl", [{"prompt": "?", column: chat}])
    assert [case.response for case in read(file).cases] == ["y"]


def test_responses_join_by_our_id_by_the_files_own_and_by_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "data.jsonl", [
        {"id": "x", "prompt": "a", "ground_truth": "1"},
        {"id": "y", "prompt": "b", "ground_truth": "2"},
    ])  # fmt: skip
    rows = read_rows([data])

    def joined(records: list[dict[str, Any]]) -> tuple[list[Any], str]:
        found = read(write(tmp_path / "r.jsonl", records), rows)
        return [case.row.ground_truth for case in found.cases], found.note

    by_id = [{"id": "data.jsonl:2", "response": "p"}, {"id": "data.jsonl:2", "response": "q"}]
    assert joined(by_id) == (["2", "2"], "2 responses joined to data.jsonl by id.")
    assert joined([{"id": "y", "response": "p"}])[0] == ["2"]
    assert joined([{"response": "p"}, {"response": "q"}]) == (
        ["1", "2"], "2 responses joined to data.jsonl by position.",
    )  # fmt: skip


def test_what_cannot_be_joined_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = read_rows([write(tmp_path / "data.jsonl", [{"prompt": "a"}, {"prompt": "b"}])])
    one = write(tmp_path / "r.jsonl", [{"response": "p"}])
    with pytest.raises(DataError, match=r"has 1 rows, data.jsonl has 2.*\n.*such as data.jsonl:1"):
        read(one, rows)
    with pytest.raises(DataError, match=r"no column prompt.*\n.*--data FILE"):
        read(one)
    half = [{"id": "data.jsonl:1", "response": "p"}, {"id": "other:7", "response": "p"}]
    with pytest.raises(
        DataError, match=r"1 of 2 ids are not in data.jsonl; the first .* r.jsonl:2"
    ):
        read(write(tmp_path / "r.jsonl", half), rows)


def test_a_column_of_labels_without_any_is_told_to_be_empty(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [{"prompt": "?", "response": "x", "ok": None}, {
        "prompt": "?", "response": "y"}])  # fmt: skip
    with pytest.raises(DataError, match="--label ok: the column is empty in every row"):
        read_responses(file, None, fields=BLANK, label="ok")


def test_a_missing_column_is_told_with_the_nearest(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [{"prompt": "?", "respons": "x"}])
    with pytest.raises(DataError, match=r"no response \(nearest: respons\); its columns: prompt"):
        read(file)
    file = write(tmp_path / "r.jsonl", [{"prompt": "?", "response": "x", "human_ok": 1}])
    with pytest.raises(DataError, match=r"--label human_okay: .*nearest: human_ok"):
        read(file, label="human_okay")
    file = write(tmp_path / "r.jsonl", [{"prompt": "?", "response": 3}])
    with pytest.raises(DataError, match=r"r.jsonl:1: field 'response' is 3, expected the text"):
        read(file)
