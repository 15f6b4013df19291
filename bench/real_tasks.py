"""The tasks of real_model.py, their score, and the settings that both of its sides share.

Imported by TRL's side and by the scoring processes too: the standard library only.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELD_OUT, FEW, TRAINING = 200, 8, 400
PROMPTS, ANSWERS = 16, 8
LR, LORA_LR, LORA_RANK, LORA_ALPHA = 1e-5, 2e-4, 16, 32
PART = 0.25
"""The score of an answer that has the first step right and not the last; it does not pass."""


def sum_question(draw: random.Random) -> tuple[str, str]:
    """A two-digit sum put in words, and its value."""
    a, b = draw.randint(10, 89), draw.randint(1, 9)
    return f"What is {a} plus {b}? Answer with a number only.", str(a + b)


def steps_question(draw: random.Random) -> tuple[str, str]:
    """Two sums, the second of which needs the first; both of their values."""
    a, b, c = draw.randint(10, 79), draw.randint(1, 9), draw.randint(1, 9)
    text = f"What is {a} plus {b}? What is that plus {c}? Answer with numbers only."
    return text, f"{a + b} {a + b + c}"


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "sums": sum_question,
    "steps": steps_question,
}


def compute_score(data_source: str, solution_str: str, ground_truth: str, **_: Any) -> float:
    """1.0 if the last number of the answer is the last one of the truth; PART if an earlier one of
    the truth is in the answer; else 0.0. For rlcli and TRL alike."""
    numbers = re.findall(r"-?\d+", solution_str)
    *earlier, last = ground_truth.split()
    if numbers and numbers[-1] == last:
        return 1.0
    return PART * any(number in numbers for number in earlier)


def write_data(task: str, folder: Path) -> None:
    """TASK_train.jsonl and, of other questions, TASK_val.jsonl; TASK_few.jsonl has a few of val."""
    draw = random.Random(task)
    questions: dict[str, str] = {}
    while len(questions) < TRAINING + HELD_OUT:
        text, value = TASKS[task](draw)
        questions[text] = value
    rows = [
        json.dumps({"prompt": text, "ground_truth": value, "data_source": task})
        for text, value in questions.items()
    ]
    parts = {"val": rows[:HELD_OUT], "few": rows[:FEW], "train": rows[HELD_OUT:]}
    for part, some in parts.items():
        (folder / f"{task}_{part}.jsonl").write_text("\n".join(some) + "\n")
