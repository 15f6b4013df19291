"""Removes closing words after an answer: offers of help, thanks, a check of the result."""

from __future__ import annotations

import re

from rlcli.rewards.rules.numbers import NUMBER, number_of, parse_number, plain, same_number

_START = r"(?:(?<=[.!?。！？\n])|^)[ \t*_]*"
_OFFER_WORDS = (
    r"questions?|just ask|ask (?:me|us|for)|let me know|tell me|clarif\w*|explanations?|examples?"
    r"|further|assistance|feel free|hesitate|contact|feedback|doubts?"
)
_OFFER = re.compile(
    _START + r"(?:I hope (?:this|that|it|these|you)\b|Hope (?:this|that|it) helps|Let me know\b"
    r"|Feel free\b|Thank you\b|Thanks\b(?! to\b)|Contact (?:us|me)\b"
    r"|(?:If you|Please|Should you|Do you|Would you)\b"
    rf"(?=[^\n.!?]{{0,200}}\b(?:{_OFFER_WORDS})\b)"
    r"|Good luck\b|(?:I am|I'm|I would be|I'd be)?\s?(?:Happy|Glad) to\b"
    r"|(?:Shall|Should|Can|Could|May) I\b"
    r"(?=[^\n.!?]{0,200}\b(?:explain|help|show|assist|go through)\b)"
    r"|(?:Надеюсь|Удачи|Если (?:у (?:вас|тебя)|вам|тебе|есть|нужн|возник|остались))"
    r"|(?:ご不明|ご質問|(?:他|ほか)に[^\n。]{0,20}(?:質問|不明)|お気軽に|お役に立)"
    r"|(?=[^\n.!?]{0,60}(?:궁금하|궁금한|질문이 있|도와\s?드릴|도움이 (?:필요|되)|알려\s?주세요))"
    r"|祝[你您]|需要我(?:解释|讲解|帮|再|继续|说明)"
    r"|希望(?:这|本|以上|对|能|我|你|您)|如有|(?:如果|若)[你您](?=[^\n。!?]{0,60}"
    r"(?:问题|疑问|帮助|告诉我|解释|例子|随时))|请(?:告诉我|随时|联系))",
    re.IGNORECASE | re.MULTILINE,
)
_CHECK = re.compile(
    _START + r"(?:(?:let us|let's|we can|we)?\s*(?:to )?(?:double-)?(?:check|verify|verification)\b"
    r"[^\n.]{0,40}[:,]|verification\b|验证|检验|验算)",
    re.IGNORECASE | re.MULTILINE,
)
_REMARK = re.compile(
    rf"(?:{_START}|(?<=\s)(?=\())\(?"
    r"(?:(?:(?:double-)?(?:verified|checked)\b[^\n=]{0,40}?\b(?:ways?|times?|methods?|approaches)"
    r"|(?:my |overall )?(?:confidence|certainty)(?: level| score)?\s*(?::|is\b)[\s*]*\d[\d.]*\s*%?"
    r"(?:\s*/\s*\d+)?|(?:置信度|信心)\s*[:：为是]\s*\d[\d.]*\s*%?))[*).。\s]*\Z",
    re.IGNORECASE,
)
"""A final remark on the model's confidence, or on how often it verified its answer."""
_SENTENCE = re.compile(r"[^.!?。！？\n]+(?:\.(?=\S)[^.!?。！？\n]*)*")
_DIGITS = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_TO_THE_READER = re.compile(
    r"\b(?:I|me|us|my|you|your|thanks|happy to|glad to)\b|[你您我]"
    r"|ください|お気軽|드릴|주세요|\b(?:вас|вам|вы|мне|тебе|спрашивайте|обращайтесь|пишите)\b",
    re.IGNORECASE,
)
_RESULT = re.compile(
    r"=|\b(?:so|then|therefore|thus|hence|in total|altogether|there (?:are|is|were|will)|makes?"
    r"|left|remain\w*)\b|[共得]|等于|所以|因此|剩",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    _START + r"(?:(?:so|therefore|thus|hence)\b|所以|因此)[^\n]*\d", re.IGNORECASE | re.MULTILINE
)
MAX_REMARK = 100
"""Distance from the end, in characters, within which a remark begins."""
MAX_CLOSING = 32
"""Matches examined per text, to bound the time for texts that repeat one phrase."""


def without_closing(text: str) -> str:
    """The text without its closing words. They stay if they state an answer or no digit precedes.

    An offer ("I hope this helps", "If you need 3 more examples, just ask") states none if every
    later sentence with a digit addresses the reader. A check ("Check: 42 / 7 = 6") states none if
    it repeats the number it checks and draws no conclusion.
    """
    digit = re.search(r"\d", text)
    if digit is None:
        return text
    for mark in list(_OFFER.finditer(text, digit.end()))[:MAX_CLOSING]:
        sentences = _SENTENCE.findall(text[mark.start() :])
        counting = [sentence for sentence in sentences if re.search(r"\d", sentence)]
        if not any(_RESULT.search(s) or not _TO_THE_READER.search(s) for s in counting):
            text = text[: mark.start()]
            break
    if remark := _REMARK.search(text, max(digit.end(), len(text) - MAX_REMARK)):
        text = text[: remark.start()]
    for mark in list(_CHECK.finditer(text, digit.end()))[:MAX_CLOSING]:
        if _repeats(text[: mark.start()], text[mark.start() :]):
            return text[: mark.start()]
    return text


def _repeats(before: str, check: str) -> bool:
    """Whether a check repeats the last number before it, and no conclusion follows."""
    matches = list(NUMBER.finditer(plain(before[-500:])))
    number = number_of(matches[-1]) if matches else None
    if number is None or _CONCLUSION.search(check):
        return False
    values = map(parse_number, _DIGITS.findall(plain(check[:2000])))
    return any(value and same_number(number, value) for value in values)
