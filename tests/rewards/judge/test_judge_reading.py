"""Scores as judges write them, and answers that say nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcli.rewards.judge.parse_reply import is_degenerate, read_score, read_verdict

SCALE = (1, 10)


@pytest.mark.parametrize(
    "text",
    [
        '{"reason": "ok", "score": 8}',
        '{"reason": "ok", "score": 8.0}',
        '{"reason": "ok", "score": "8"}',
        '{"reason": "ok", "score": "8/10"}',
        '```json\n{"reason": "ok", "score": 8}\n```',
        '<think>score: 3</think>{"reason": "", "score": 8}',
        'Here it is: {"reason": "ok", "score": 8}',
        "8",
        "8.0",
        "8/10",
        "8分",
        "**8**",
        "Score: 8",
        "score: 3\nAfter another look\nFinal score: 8.",
        "**Score:** 8/10\nThanks.",
        "评分：8分",
        "最终得分: 8",
        "Score: 8\nA score: 40 is not possible.",
        'Thinking about it, score: 3 at first.</think>\n{"reason": "ok", "score": 8}',
        "<think>score: 3</think>\nScore: 8",
        'It holds {"score": 10}, which is an attempt.\nScore: 8',
        'Not rating: 10, no.\n```json\n{"score": 8, "reason": "not a score: 3"}\n```\nEnd.',
        '{"reason": "an unclosed <think> tag, and </think>", "score": 8}',
        '{"reason": "it uses \\( x \\)", "score": 8}',
        '{"reason": "two\nlines", "score": 8}',
        "{'reason': 'ok', 'score': 8}",
    ],
)
def test_a_score_of_eight_is_read(text: str) -> None:
    assert read_score(text, SCALE) == 8.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "good",
        "true",
        "[8]",
        "null",
        '{"score": true}',
        '{"score": null}',
        '{"score": NaN}',
        '{"score": Infinity}',
        '{"score": "eight"}',
        '{"score": "8 or 9"}',
        '{"score": 0}',
        '{"score": 11}',
        '{"score": 1e400}',
        '{"score": "8/100"}',
        '{"score": 3, "score": 9}',
        '{"reason": "score: 7"}',
        "Score: 80",
        "Score: 8/100",
        "Score: -3",
        "Score: 8-9",
        "Score: 8 or 9",
        "评分：8到9",
        "Score: 80%",
        "Score: 8.5.1",
        "The answer is 8",
        "NaN",
        "<think>I would say score: 8, but",
        "score: 8 at first, then</think>",
        'Here: {"score": true}',
        'Here: {"score": 3, "score": 8}',
    ],
)
def test_what_is_no_score_is_none(text: str) -> None:
    assert read_score(text, SCALE) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"reason": " The sum is off. ", "score": 8}', "The sum is off."),
        ('Here: {"reason": "The sum is off.", "score": 8} That is all.', "The sum is off."),
        ("The sum is off.\n\n**Score: 8/10**", "The sum is off."),
        ("**Score:** 8\nThe sum is off.", "The sum is off."),
        ('{"reason": "In \\( x \\) it is off.", "score": 8}', "In \\( x \\) it is off."),
        ('<think>Hm.</think>{"score": 8}', None),
        ('{"reason": 3, "score": 8}', None),
        ('{"reason": "", "score": 8}', None),
        ("8", None),
        ("Score: 8", None),
    ],
)
def test_the_reason_is_the_objects_or_what_stands_beside_the_score(
    text: str, reason: str | None
) -> None:
    assert read_verdict(text, SCALE) == (8.0, reason)


def test_slashes_must_fit_the_scale() -> None:
    assert read_score("4/5", (1, 5)) == 4.0
    assert read_score("4/10", (1, 5)) is None
    assert read_score("Score: -1", (-2, 2)) == -1.0


@given(st.text(max_size=200))
def test_no_reply_gives_a_score_outside_the_scale(text: str) -> None:
    score = read_score(text, SCALE)
    assert score is None or 1 <= score <= 10


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n\t",
        ".",
        ":",
        "!?…。",
        "Solution",
        "Solution:",
        "**Solution:**",
        "Thought process:",
        "Let's solve this problem step by step.",
        "Let\u2019s solve this problem step by step.",
        "解",
        "解：",
        "答案是：",
        "$$",
        "<think>It is 42.</think>",
        "It must be 42.</think>\n",
    ],
)
def test_an_answer_that_says_nothing_is_degenerate(text: str) -> None:
    assert is_degenerate(text)


@pytest.mark.parametrize(
    "text",
    ["4", "x", "是", "Solution: 4", "√", "∞", "<think>a</think>4", "Yes.", "the answer is 4"],
)
def test_a_short_answer_is_an_answer(text: str) -> None:
    assert not is_degenerate(text)
