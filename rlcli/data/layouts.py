"""Rows of public data sets: which of their columns are prompt and reference answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

Record = Mapping[str, Any]
TRANSCRIPT_COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chosen")
"""Columns that hold whole conversations: their last assistant message is the reference answer."""
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


def _plain(record: Record, column: str) -> Any:
    return _with_system(record, record[column])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Columns of one public format.

    needs: columns that identify it; the first holds the prompt. read: (row, prompt column) to the
    prompt, text or messages. golds: columns of the reference answer; the first with a value counts.
    """

    needs: tuple[str, ...]
    read: Callable[[Record, str], Any] = _plain
    golds: tuple[str, ...] = ()

    @property
    def column(self) -> str:
        """The prompt column, for remarks."""
        return self.needs[0]

    def prompt(self, record: Record) -> Any:
        """The prompt of a row: text or messages."""
        return self.read(record, self.column)

    def ground_truth(self, record: Record) -> Any:
        """The reference answer of a row, or None. `... #### 7` (GSM8K) is 7."""
        column = self.gold_column(record)
        if column is None:
            return None
        gold = record[column]
        if isinstance(gold, str) and column == "answer" and "\n####" in f"\n{gold}":
            return gold.rpartition("####")[2].strip().replace(",", "")
        return gold

    def gold_column(self, record: Record) -> str | None:
        """The column that `ground_truth` reads."""
        return next((name for name in self.golds if record.get(name) not in (None, "")), None)


def find_layout(record: Record) -> Layout | None:
    """The layout of a row without a column `prompt`; None if it matches none."""
    for layout in LAYOUTS:
        if all(record.get(name) is not None for name in layout.needs):
            return layout
    return None


def other_gold(record: Record) -> str | None:
    """The column with the reference answer in a row that has a prompt, or None."""
    return next((name for name in GOLDS if record.get(name) not in (None, "", [])), None)


def _with_system(record: Record, prompt: Any) -> Any:
    """Messages, preceded by columns `system` and `history` ([question, answer] pairs)."""
    system, history = record.get("system"), record.get("history")
    before: list[Any] = []
    for pair in cast("list[Any]", history) if isinstance(history, list) else []:
        if isinstance(pair, list) and len(cast("list[Any]", pair)) == 2:
            before += [
                {"role": "user", "content": pair[0]},
                {"role": "assistant", "content": pair[1]},
            ]
        else:
            before.append(pair)
    after: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if isinstance(system, str) and system.strip() and not _opens_with_system(after):
        before.insert(0, {"role": "system", "content": system})
    return [*before, *after] if before and isinstance(after, list) else prompt


def _opens_with_system(messages: Any) -> bool:
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, dict) and "system" in (first.get("role"), first.get("from"))


def _alpaca(record: Record, column: str) -> Any:
    more = record.get("input")
    text = record[column]
    if isinstance(text, str) and isinstance(more, str) and more.strip():
        text = f"{text}\n\n{more}"
    return _with_system(record, text)


def _with_starter(record: Record, column: str) -> Any:
    text, code = record[column], record.get("starter_code")
    if isinstance(text, str) and isinstance(code, str) and code.strip():
        return f"{text}\n\nComplete this code:\n```python\n{code.rstrip()}\n```"
    return text


def _mbpp(record: Record, column: str) -> Any:
    text, tests = record[column], record["test_list"]
    if isinstance(text, str) and isinstance(tests, list) and tests:
        return f"{text}\nYour code should pass these tests:\n" + "\n".join(map(str, tests))
    return text


def _chosen(record: Record, column: str) -> Any:
    """The chosen conversation; a transcript (`Human: ...`, `Assistant: ...`) as messages."""
    chosen = record[column]
    if not isinstance(chosen, str):
        return chosen
    parts = _HH_TURN.split(chosen)
    if len(parts) < 3 or parts[0].strip():
        return chosen
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[who], "content": text.strip()} for who, text in turns]


GOLDS = ("solution", "answer", "golden_answers", "reference_answer", "test_list")
LAYOUTS = (
    Layout(  # LiveCodeBench
        needs=("question_content", "public_test_cases"),
        read=_with_starter,
        golds=("public_test_cases",),
    ),
    Layout(  # APPS
        needs=("question", "input_output"),
        read=_with_starter,
        golds=("input_output",),
    ),
    Layout(  # MBPP
        needs=("text", "test_list"),
        read=_mbpp,
        golds=("test_list",),
    ),
    Layout(  # Open-R1, MATH
        needs=("problem",),
        golds=("answer", "solution", "expected_answer"),
    ),
    Layout(  # GSM8K, FlashRAG
        needs=("question",),
        golds=("golden_answers", "answer", "final_answer", "solution", "target"),
    ),
    Layout(  # Alpaca
        needs=("instruction",),
        read=_alpaca,
        golds=("output", "response", "answer"),
    ),
    Layout(  # ms-swift
        needs=("query",),
        golds=("solution", "response", "answer"),
    ),
    Layout(
        needs=("messages",),
        golds=("solution", "answer"),
    ),
    Layout(  # OpenRLHF
        needs=("context_messages",),
        golds=("solution", "answer", "label"),
    ),
    Layout(  # ShareGPT
        needs=("conversations",),
        golds=("solution", "answer"),
    ),
    Layout(
        needs=("conversation",),
        golds=("solution", "answer"),
    ),
    Layout(  # preference pairs, HH
        needs=("chosen", "rejected"),
        read=_chosen,
    ),
)
"""The first layout whose `needs` a row has is used."""
