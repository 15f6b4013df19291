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
NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily")
THINGS = ("apples", "books", "coins", "pens", "cards", "stones")


def sum_question(draw: random.Random) -> tuple[str, int]:
    """A two-digit sum put in words, and its value."""
    a, b = draw.randint(10, 89), draw.randint(1, 9)
    return f"What is {a} plus {b}? Answer with a number only.", a + b


def story_question(draw: random.Random) -> tuple[str, int]:
    """A story of two changes to a number, and the number at the end."""
    name, things = draw.choice(NAMES), draw.choice(THINGS)
    value = draw.randint(2, 9)
    text = f"{name} has {value} {things}."
    for _ in range(2):
        by = draw.randint(1, 9)
        gains = value <= by or draw.random() < 0.5
        value += by if gains else -by
        text += f" {name} {'gets' if gains else 'loses'} {by} {things}."
    text += f" How many {things} does {name} have now? Answer with a number only."
    return text, value


TASKS: dict[str, Callable[[random.Random], tuple[str, int]]] = {
    "sums": sum_question,
    "story": story_question,
}


def compute_score(data_source: str, solution_str: str, ground_truth: str, **_: Any) -> float:
    """1.0 if the last number of the answer is the right one, else 0.0. For rlcli and TRL alike."""
    numbers = re.findall(r"-?\d+", solution_str)
    return float(bool(numbers) and numbers[-1] == ground_truth)


def write_data(task: str, folder: Path) -> None:
    """TASK_train.jsonl and, of other questions, TASK_val.jsonl; TASK_few.jsonl has a few of val."""
    draw = random.Random(task)
    questions: dict[str, int] = {}
    while len(questions) < TRAINING + HELD_OUT:
        text, value = TASKS[task](draw)
        questions[text] = value
    rows = [
        json.dumps({"prompt": text, "ground_truth": str(value), "data_source": task})
        for text, value in questions.items()
    ]
    parts = {"val": rows[:HELD_OUT], "few": rows[:FEW], "train": rows[HELD_OUT:]}
    for part, some in parts.items():
        (folder / f"{task}_{part}.jsonl").write_text("\n".join(some) + "\n")
