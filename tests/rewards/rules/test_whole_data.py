"""The rules on GSM8K and MATH as `rlcli data prepare` converts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlcli.data.convert import convert
from rlcli.rewards.rules import choose


class Row(NamedTuple):
    """A converted row, and the whole reference solution of its source."""

    data_source: str
    gold: str
    solution: str


EQUAL_GOLDS = {("30", r"30^\circ")}
"""Answers of other rows that are equal, though written differently."""


def read_rows(name: str, shared_data: Path, folder: Path) -> list[Row]:
    """All rows of both splits."""
    import pyarrow.parquet

    rows: list[Row] = []
    for split, file in convert(name, shared_data, folder)["files"].items():
        lines = (shared_data / f"{name}_{split}.jsonl").read_text(encoding="utf-8").splitlines()
        records: list[dict[str, Any]] = pyarrow.parquet.read_table(file["path"]).to_pylist()
        for line, row in zip(lines, records, strict=True):
            source = json.loads(line)
            solution = source.get("answer") or source["solution"]
            rows.append(Row(row["data_source"], row["reward_model"]["ground_truth"], solution))
    return rows


def score(row: Row, response: str) -> float:
    return float(choose(row.data_source)(row.data_source, response, row.gold))


@pytest.mark.slow
def test_gsm8k_own_answers_score_1_and_others_0(shared_data: Path, tmp_path: Path) -> None:
    rows = read_rows("gsm8k", shared_data, tmp_path)
    assert len(rows) == 8792
    assert [row for row in rows if score(row, row.solution) != 1.0] == []
    assert [row for row in rows if score(row, row.gold) != 1.0] == []
    others = rows[37:] + rows[:37]
    pairs = [
        (row, other) for row, other in zip(rows, others, strict=True) if row.gold != other.gold
    ]
    assert [pair for pair in pairs if score(pair[0], pair[1].solution)] == []


def test_math_reference_solutions_and_bare_golds_score_1(shared_data: Path, tmp_path: Path) -> None:
    rows = read_rows("math", shared_data, tmp_path)
    assert len(rows) == 4500
    # One lists three boxes of which one is the gold; one joins its two answers by "or".
    failures = [row.gold for row in rows if score(row, row.solution) != 1.0]
    assert failures == ["-3 + 6i", r"\frac{2}{5}"]
    assert [row.gold for row in rows if score(row, row.gold) != 1.0] == []


@pytest.mark.parametrize("every", [30, pytest.param(1, marks=pytest.mark.nightly)])
def test_math_solutions_of_other_rows_score_0(
    shared_data: Path, tmp_path: Path, every: int
) -> None:
    rows = read_rows("math", shared_data, tmp_path)[::every]
    others = rows[1:] + rows[:1]
    right = {
        (row.gold, other.gold)
        for row, other in zip(rows, others, strict=True)
        if score(row, other.solution)
    }
    assert {pair for pair in right if pair[0] != pair[1]} <= EQUAL_GOLDS
