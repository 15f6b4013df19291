"""Known bad answers: bad for every question, in its language, and never right by chance."""

from __future__ import annotations

import re

from rlcli.rewards.judge.canaries import INJECTIONS, OFF_TOPIC, OPENERS, bad_answers
from rlcli.rewards.judge.parse_reply import is_degenerate
from rlcli.types import Prompt

KINDS = (OPENERS, INJECTIONS, OFF_TOPIC)
TEXTS = [text for kind in KINDS for texts in kind.values() for text in texts]


def prompts(*texts: str) -> list[Prompt]:
    return [
        Prompt(id=f"a:{i}", messages=({"role": "user", "content": text},), token_ids=(1,))
        for i, text in enumerate(texts)
    ]


def test_there_is_one_of_each_kind_on_prompts_of_their_own() -> None:
    asked = prompts(*(f"{i} + 1 =" for i in range(8)))
    for step in range(40):
        answers = bad_answers(step, asked)
        kinds = zip(answers, KINDS, strict=True)
        assert all(answer.text in kind["en"] for answer, kind in kinds)
        assert len({answer.prompt.id for answer in answers}) == 3
        assert bad_answers(step, asked) == answers


def test_prompts_and_wording_change_with_the_step() -> None:
    asked = prompts(*(f"{i} + 1 =" for i in range(8)))
    seen = [answer for step in range(0, 2000, 20) for answer in bad_answers(step, asked)]
    assert {answer.prompt.id for answer in seen} == {prompt.id for prompt in asked}
    assert {answer.text for answer in seen} == {text for kind in KINDS for text in kind["en"]}


def test_few_prompts_get_several_and_none_gets_none() -> None:
    assert [answer.prompt.id for answer in bad_answers(0, prompts("1 + 1 ="))] == ["a:0"] * 3
    assert bad_answers(0, []) == []


def test_a_chinese_prompt_gets_chinese_canaries() -> None:
    answers = bad_answers(3, prompts("3 加 4 等于几？"))
    assert all(answer.text in kind["zh"] for answer, kind in zip(answers, KINDS, strict=True))


def test_none_holds_a_number_or_a_formula_that_might_be_the_answer() -> None:
    words = r"\b(zero|one|two|three|four|five|six|seven|eight|nine|ten|half|yes|no|true|false)\b"
    for text in TEXTS:
        assert not re.search(r"[\d=+\\$]", text), text
        assert not re.search(words, text, re.IGNORECASE), text
        assert not re.search("[〇零一二三四五六七八九十百千]", text), text


def test_all_of_them_reach_the_judge() -> None:
    assert not any(is_degenerate(text) for text in TEXTS)
    assert len(set(TEXTS)) == len(TEXTS)
