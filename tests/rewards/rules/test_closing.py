"""Closing words are cut off only if they state no answer."""

from __future__ import annotations

import pytest

from rlcli.rewards.rules import gsm8k, math
from rlcli.rewards.rules.closing import without_closing


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("Ann has 3 pens. If you count the 4 new ones, she has 7 pens.", 7),
        ("There were 3 birds. Please note that 4 more came, so there are 7.", 7),
        ("He paid 3 dollars. Thanks to the discount he saves 7 dollars.", 7),
        ("She had 3. To check out all books she needs 7 dollars.", 7),
        ("A pack costs 3. Contact lenses cost 7.", 7),
        ("他有3本书。如果您再给他4本，他一共有7本。", 7),
        ("希望小学有3个班，后来有7个班。", 7),
        ("There are 3 cats. Let me know your thoughts. With the kittens there are 7.", 7),
        ("It takes 7 hours. If you have any questions about step 3, just ask!", 7),
        ("It takes 7 hours. Please let me know if you want 3 more examples.", 7),
        ("It takes 7 hours. I hope this helps! Call me in 5 minutes.", 7),
        ("一共7个。如果您有问题，可以看第3步。", 7),
        ("So he has 7 left. Check: 7 + 3 = 10.", 7),
        ("So he has 7 left.\nVerification: 3 + 7 = 10, as given.", 7),
        ("一共7个。验证：7 + 3 = 10。", 7),
        ("So he has 7 left.\nConfidence: 95%", 7),
        ("So he has 7 left. My confidence is **9/10**.\n", 7),
        ("So he has 7 left. (Verified in 2 ways.)", 7),
        ("一共7个。\n置信度：95%", 7),
        ("He counted 3. Checked: there are 7", 7),
        ("He checked 3 boxes in 7", 7),
        ("He has 3. To verify the total, add 4 to 3. So the total is 7.", 7),
    ],
)
def test_the_number_of_the_last_sentence_that_answers_counts(response: str, number: int) -> None:
    for rule in (gsm8k, math):
        assert rule.compute_score("", response, str(number)) == 1.0
        assert rule.compute_score("", response, "3") == 0.0


@pytest.mark.parametrize(
    "response",
    [
        "答えは42です。",
        "よって、正解は42個です。",
        "정답은 42입니다.",
        "따라서 답은 42개입니다.",
        "Ответ: 42.",
        "Ответ: 42 рубля",
        "La respuesta final es 42.",
        "La réponse est 42.",
        "Die Antwort lautet: 42",
        "A resposta é 42.",
        "The answer is 42. <|im_end|>",
        "The answer is 42.</s>",
        "The value of $f(3)$ is 42.",
        "Final Answer: The largest $n$ is 42.<|im_start|>user",
        "\\boxed{\\text{The smallest value is } 42}",
    ],
)
def test_answers_in_other_languages_and_sentences(response: str) -> None:
    for rule in (gsm8k, math):
        assert rule.compute_score("", response, "42") == 1.0
        assert rule.compute_score("", response, "41") == 0.0


def test_a_decimal_comma_counts_for_a_decimal_number() -> None:
    for rule in (gsm8k, math):
        assert rule.compute_score("", "Prix : 3,85 $ par personne.", "3.85") == 1.0
        assert rule.compute_score("", "Prix : 3,85 $ par personne.", "385") == 0.0


@pytest.mark.parametrize("piece", ["I hope this ", "Check: 1 ", "If you ask ", "So 1. ", "1\n"])
def test_texts_that_repeat_one_phrase_are_read_quickly(piece: str) -> None:
    assert without_closing("7 " + piece * 2000) is not None
