"""Test cases for a reward: each row's own answer, and another row's answer instead."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from rlcli.data.readers import Row
from rlcli.errors import DataError
from rlcli.rewards.base import text_rollout
from rlcli.rewards.function_check import SOLUTION, answer_text, prompt_of
from rlcli.rewards.rules import reference_problem
from rlcli.types import Rollout

Kind = Literal["right", "wrong", "given"]
CODE = "code"
"""The rule whose ground truths are tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One response to score. label: what a person says of it; None: nobody says anything."""

    row: Row
    response: str
    kind: Kind
    label: float | None = None

    def rollout(self) -> Rollout:
        """The response as a sampler's rollout, without tokens."""
        return text_rollout(prompt_of(self.row), self.response)


def own_answers(rows: Sequence[Row], *, runs_code: Collection[str] = ()) -> list[Case]:
    """Every row with its own ground truth, or its own program, as the response.

    runs_code: data sources whose ground truth is tests and no answer.

    Raises: DataError where a row has neither.
    """
    return [_own_answer(row, is_code=row.data_source in runs_code) for row in rows]


def _own_answer(row: Row, *, is_code: bool) -> Case:
    solution = row.extra_info.get(SOLUTION)
    if isinstance(solution, str) and solution.strip():
        return Case(row=row, response=solution, kind="right")
    if is_code:
        if problem := reference_problem(CODE, row.ground_truth):
            raise DataError(f"{row.id}: {problem} (rule {CODE}).")
        raise DataError(
            f"{row.id}: the ground truth is tests, and extra_info has no {SOLUTION} to try them "
            "on.\nGive responses of a model: --responses FILE."
        )
    if row.ground_truth is None:
        raise DataError(
            f"{row.id} has no ground_truth: there is no answer to try the reward on.\n"
            "Give responses of a model: --responses FILE, with --label FIELD where people have "
            "judged them."
        )
    return Case(row=row, response=answer_text(row.ground_truth), kind="right")


class OtherAnswers:
    """The answers of other rows, the next one first; of the same data source where that has any."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        groups: dict[str, list[int]] = {}
        for at, case in enumerate(cases):
            groups.setdefault(case.row.data_source, []).append(at)
        self._ring = {name: _Ring(cases, places) for name, places in groups.items()}
        self._whole = _Ring(cases, range(len(cases)))

    def next(self, index: int, tried: Collection[str] = ()) -> int | None:
        """The row whose answer is neither that of row `index` nor one of `tried`; None: no such."""
        own = self._ring[self._cases[index].row.data_source]
        found = own.next(index, tried)
        return self._whole.next(index, tried) if found is None and not own.has_several else found


class _Ring:
    """Rows in a circle, each with the next one whose answer is another."""

    def __init__(self, cases: Sequence[Case], places: Sequence[int]) -> None:
        self._places = places
        self._place_of = {index: at for at, index in enumerate(places)}
        self._keys = [answer_key(cases[index].response) for index in places]
        self._distinct = set(self._keys)
        self._next = list(range(len(places)))
        for at in reversed(range(2 * len(places))):  # twice round: the end goes on at the start
            here, after = at % len(places), (at + 1) % len(places)
            is_other = self._keys[here] != self._keys[after]
            self._next[here] = after if is_other else self._next[after]

    @property
    def has_several(self) -> bool:
        """Whether there is more than one answer."""
        return len(self._distinct) > 1

    def next(self, index: int, tried: Collection[str]) -> int | None:
        at = self._place_of[index]
        out = {self._keys[at], *map(answer_key, tried)}
        if self._distinct <= out:
            return None
        while self._keys[at] in out:
            at = self._next[at]
        return self._places[at]


def answer_key(answer: str) -> str:
    """What two spellings of one answer share: blanks and case, or a number's value."""
    text = " ".join(answer.split()).casefold()
    try:
        number = Decimal(text.replace(",", "").strip("$%. "))
    except InvalidOperation:
        return text
    return str(number.normalize()) if number.is_finite() else text
