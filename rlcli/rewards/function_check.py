"""Tries a user's reward function on right and wrong answers before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from rlcli.errors import RewardError
from rlcli.rewards.base import text_rollout
from rlcli.rewards.in_process import RewardCaller, start_caller
from rlcli.rewards.process import CallFailed, NotStarted
from rlcli.rewards.process_pool import call_of, read_reply, with_key_hint
from rlcli.rewards.rules.references import alternatives
from rlcli.rewards.rules.undecided import InvalidReference
from rlcli.types import Message, Prompt, Reward

MAX_SOURCES, MIN_ROWS = 4, 2
"""Data sources tried at most, one row each, and rows tried at least."""
SOLUTION = "canonical_solution"
"""Key in a row's extra_info with a full answer, for ground truths that are not answers (tests)."""
FORMS = ("#### {}", "\\boxed{{{}}}", "<think>\n...\n</think>\n<answer>{}</answer>")
"""Answer formats that reward functions often require."""


class Row(Protocol):
    """The fields of a data row that rewards read."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str | tuple[Message, ...]: ...
    @property
    def data_source(self) -> str: ...
    @property
    def ground_truth(self) -> Any: ...
    @property
    def extra_info(self) -> Mapping[str, Any]: ...
    @property
    def columns(self) -> Mapping[str, Any]: ...


def check_function(
    fn: str,
    rows: Sequence[Row] = (),
    *,
    timeout_s: float = 10.0,
    weights: Mapping[str, float] | None = None,
    may_abstain: bool = False,
) -> list[str]:
    """Load the user's function `reward.fn`, try it on some of `rows`, and return notes.

    weights: of the parts it returns. may_abstain: whether None leaves the rollout to a judge.

    Raises:
        RewardError: it cannot be loaded or called (with file and line), hangs, ends its process,
            or scores none of the answers.
    """
    with closing(start_caller(fn, timeout_s=timeout_s)) as process:
        try:
            process.wait_until_ready()
        except RewardError as error:
            raise RewardError(with_key_hint(str(error))) from error
        except NotStarted as error:
            raise RewardError(
                f"reward.fn={fn} ends its process while it is loaded: {error}."
            ) from error
        trial = _Trial(fn, process, dict(weights or {}), may_abstain)
        return [*_form_notes(fn, process.form, rows), *(trial.notes(rows) if rows else ())]


def answer_text(answer: Any) -> str:
    """An answer as text, the first if there are alternatives."""
    with suppress(InvalidReference):
        answer = alternatives(answer)[0]
    return (
        json.dumps(answer, ensure_ascii=False, default=str)
        if isinstance(answer, list | dict)
        else str(answer)
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    """Rewards of a right and a wrong answer; wrong is None if all rows have the same answer."""

    row: Row
    wrong_answer: str | None
    right: Reward
    wrong: Reward | None

    @property
    def scores(self) -> tuple[float, float] | None:
        """Scores of the right and the wrong answer; None unless both have one."""
        if self.wrong is None or self.right.value is None or self.wrong.value is None:
            return None
        return self.right.value, self.wrong.value

    @property
    def is_apart(self) -> bool:
        """Whether the right answer has the higher score."""
        return self.scores is not None and self.scores[0] > self.scores[1]


@dataclass(frozen=True, slots=True)
class _Trial:
    """Trial calls of one function, in a scoring process."""

    fn: str
    process: RewardCaller
    weights: Mapping[str, float]
    may_abstain: bool

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """Notes on the results. Raises: RewardError if no call returns a score."""
        some = _chosen(rows)
        pairs = [self._pair(row, rows) for row in some]
        if all(map(self._is_failure, _rewards(pairs))):
            others = [row for row in rows if row not in some]
            pairs += self._until_scored(others)
        failed = [
            (pair.row, one) for pair in pairs for one in _rewards([pair]) if self._is_failure(one)
        ]
        count = len(_rewards(pairs))
        if len(failed) == count:
            raise RewardError(
                f"reward.fn={self.fn} was tried on a row's own ground truth and fails: "
                f"{failed[0][1].error}.\nFix the function: it would score nothing."
            )
        notes = [
            f"reward.fn={self.fn} left {len(failed)} of {count} answers tried unscored, for "
            f"{row.id}: {one.error}."
            for row, one in failed[:1]
        ]
        return notes + self._doubts(pairs)

    def _pair(self, row: Row, rows: Iterable[Row]) -> _Pair:
        right = _answer(row)
        others = (_answer(other) for other in rows if other.ground_truth is not None)
        wrong = next((text for text in others if text != right), None)
        if row.ground_truth is None or wrong is None:
            return _Pair(row, None, self._ask(row, right), None)
        return _Pair(row, wrong, self._ask(row, right), self._ask(row, wrong))

    def _until_scored(self, rows: Iterable[Row]) -> list[_Pair]:
        """Right answers of more rows, until one gets a score."""
        pairs: list[_Pair] = []
        for row in rows:
            pairs.append(_Pair(row, None, self._ask(row, _answer(row)), None))
            if pairs[-1].right.value is not None:
                break
        return pairs

    def _ask(self, row: Row, answer: str, *, ground_truth: Any = None) -> Reward:
        prompt = prompt_of(row)
        if ground_truth is not None:
            prompt = replace(prompt, ground_truth=ground_truth)
        try:
            reply = self.process.call(call_of(text_rollout(prompt, answer), is_rule=False))
        except CallFailed as error:
            raise RewardError(
                f"reward.fn={self.fn} was tried on {row.id} and fails: {error}.\n"
                "Fix the function: it would score nothing."
            ) from error
        return read_reply(reply, weights=self.weights)

    def _is_failure(self, reward: Reward) -> bool:
        return reward.value is None and not (self.may_abstain and reward.is_undecided)

    def _doubts(self, pairs: Sequence[_Pair]) -> list[str]:
        """A note if no right answer scores higher than a wrong one, with the likely cause."""
        scored = [(pair, scores) for pair in pairs if (scores := pair.scores)]
        if not scored or any(pair.is_apart for pair, _ in scored):
            return []
        pair, scores = scored[0]
        gold = pair.row.ground_truth
        other = _other_type(gold)
        if other is not None and self._separates(pair, "{}", ground_truth=other):
            return [_type_note(self.fn, scores, gold)]
        for form in FORMS:
            if self._separates(pair, form):
                example = " ".join(form.format(_answer(pair.row)).split())
                return [
                    f"reward.fn={self.fn} pays for a row's own ground truth only in the form "
                    f"{example}. Your model must write it so."
                ]
        return [
            f"reward.fn={self.fn} gives {scores[0]:g} to a row's own ground truth and "
            f"{scores[1]:g} to another row's. Look whether it reads answers in the form your model "
            "writes them."
        ]

    def _separates(self, pair: _Pair, form: str, *, ground_truth: Any = None) -> bool:
        """Whether the right answer scores higher when both are written in `form`."""
        texts = (_answer(pair.row), pair.wrong_answer or "")
        try:
            right, wrong = (
                self._ask(pair.row, form.format(text), ground_truth=ground_truth) for text in texts
            )
        except RewardError:  # the data has no such answers, so a function may fail on them
            return False
        return replace(pair, right=right, wrong=wrong).is_apart


def _type_note(fn: str, scores: tuple[float, float], gold: Any) -> str:
    if isinstance(gold, str):
        return (
            f"reward.fn={fn} gives {scores[0]:g} to a row's own ground truth and {scores[1]:g} to "
            f"another row's: ground_truth is text in the data ({gold!r}), and it compares it with "
            "a number. Convert one of them."
        )
    return (
        f"reward.fn={fn} gives {scores[0]:g} to a row's own ground truth and {scores[1]:g} to "
        f"another row's: ground_truth is a number in the data ({gold!r}), and it compares it with "
        "text. Convert one of them."
    )


def _form_notes(fn: str, form: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Notes on the arguments of a function with an unusual signature."""
    notes: list[str] = []
    columns = [name for name in form["columns"] if rows and name in rows[0].columns]
    if columns:
        notes.append(f"reward.fn={fn} is given columns of each row: {', '.join(columns)}.")
    if form["lists"]:
        notes.append(
            f"reward.fn={fn} takes lists ({form['lists']}): it is called with one response at a "
            "time, so a score cannot depend on other responses."
        )
    return notes


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """The first row of each of `MAX_SOURCES` data sources, and more up to `MIN_ROWS`."""
    firsts = {row.data_source: row for row in reversed(rows)}
    some = [row for row in rows if firsts[row.data_source] is row][:MAX_SOURCES]
    more = [row for row in rows if row not in some]
    return [*some, *more[: max(0, MIN_ROWS - len(some))]]


def _rewards(pairs: Iterable[_Pair]) -> list[Reward]:
    return [one for pair in pairs for one in (pair.right, pair.wrong) if one is not None]


def _answer(row: Row) -> str:
    solution = row.extra_info.get(SOLUTION)
    return solution if isinstance(solution, str) else answer_text(row.ground_truth)


def prompt_of(row: Row) -> Prompt:
    """The prompt of a row for scoring, without tokens."""
    messages = ({"role": "user", "content": row.prompt},)
    return Prompt(
        id=row.id,
        messages=messages if isinstance(row.prompt, str) else row.prompt,
        token_ids=(),
        ground_truth=row.ground_truth,
        data_source=row.data_source,
        extra_info=row.extra_info,
        columns={**row.columns, "prompt": row.prompt},
    )


def _other_type(gold: Any) -> Any:
    """Numeric text as a number, a number as text, anything else as None."""
    if isinstance(gold, int | float) and not isinstance(gold, bool):
        return str(gold)
    if not isinstance(gold, str):
        return None
    try:
        number = Decimal(gold.strip())
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    return int(number) if number == number.to_integral_value() else float(number)
