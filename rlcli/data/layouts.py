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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One form of rows. needs: columns that mark it; golds: the first one present is the answer.

    prompt: the prompt of a row, text or messages. column: the one it is read from, for remarks.
    """

    needs: tuple[str, ...]
    column: str
    prompt: Callable[[Record], Any]
    golds: tuple[str, ...] = ()

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
    """The layout of a row without a column `prompt`; None for an unknown one."""
    for layout in LAYOUTS:
        if all(record.get(name) is not None for name in layout.needs):
            return layout
    return None


def other_gold(record: Record) -> str | None:
    """The column beside `prompt` that holds the reference answer under another name."""
    return next((name for name in GOLDS if record.get(name) not in (None, "", [])), None)


def _column(name: str) -> Callable[[Record], Any]:
    return lambda record: _with_system(record, record[name])


def _with_system(record: Record, prompt: Any) -> Any:
    """Messages with what columns `system` and `history` ([question, answer] pairs) hold."""
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


def _alpaca(record: Record) -> Any:
    more = record.get("input")
    text = record["instruction"]
    if isinstance(text, str) and isinstance(more, str) and more.strip():
        text = f"{text}\n\n{more}"
    return _with_system(record, text)


def _with_starter(column: str) -> Callable[[Record], Any]:
    def prompt(record: Record) -> Any:
        text, code = record[column], record.get("starter_code")
        if isinstance(text, str) and isinstance(code, str) and code.strip():
            return f"{text}\n\nComplete this code:\n```python\n{code.rstrip()}\n```"
        return text

    return prompt


def _mbpp(record: Record) -> Any:
    text, tests = record["text"], record["test_list"]
    if isinstance(text, str) and isinstance(tests, list) and tests:
        return f"{text}\nYour code should pass these tests:\n" + "\n".join(map(str, tests))
    return text


def _chosen(record: Record) -> Any:
    """Messages of `chosen`; a transcript (`Human: ...`, `Assistant: ...`) is cut into messages."""
    chosen = record["chosen"]
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
        column="question_content",
        prompt=_with_starter("question_content"),
        golds=("public_test_cases",),
    ),
    Layout(  # APPS
        needs=("question", "input_output"),
        column="question",
        prompt=_with_starter("question"),
        golds=("input_output",),
    ),
    Layout(  # MBPP
        needs=("text", "test_list"),
        column="text",
        prompt=_mbpp,
        golds=("test_list",),
    ),
    Layout(  # Open-R1, MATH
        needs=("problem",),
        column="problem",
        prompt=_column("problem"),
        golds=("answer", "solution", "expected_answer"),
    ),
    Layout(  # GSM8K, FlashRAG
        needs=("question",),
        column="question",
        prompt=_column("question"),
        golds=("golden_answers", "answer", "final_answer", "solution", "target"),
    ),
    Layout(  # Alpaca
        needs=("instruction",),
        column="instruction",
        prompt=_alpaca,
        golds=("output", "response", "answer"),
    ),
    Layout(  # ms-swift
        needs=("query",),
        column="query",
        prompt=_column("query"),
        golds=("solution", "response", "answer"),
    ),
    Layout(
        needs=("messages",),
        column="messages",
        prompt=_column("messages"),
        golds=("solution", "answer"),
    ),
    Layout(  # OpenRLHF
        needs=("context_messages",),
        column="context_messages",
        prompt=_column("context_messages"),
        golds=("solution", "answer", "label"),
    ),
    Layout(  # ShareGPT
        needs=("conversations",),
        column="conversations",
        prompt=_column("conversations"),
        golds=("solution", "answer"),
    ),
    Layout(
        needs=("conversation",),
        column="conversation",
        prompt=_column("conversation"),
        golds=("solution", "answer"),
    ),
    Layout(  # preference pairs, HH
        needs=("chosen", "rejected"),
        column="chosen",
        prompt=_chosen,
    ),
)
"""In this order: the first whose columns a row has."""
