"""Translate printed English text into the user's language, by a catalogue."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Final

CATALOGUE: Final = Path(__file__).parents[1] / "assets" / "zh"
VARIABLE: Final = "RLCLI_LANG"
TYPED: Final = re.compile(r"(?:--lang=|\+{0,2}run\.lang=)['\"]?(\w+)['\"]?")
LONGEST: Final = 4000
"""Longest line to translate, in characters; longer lines are user data."""
BOUNDARY: Final = re.compile(r"(?<=[.:;]) | (?=\()|(?=, )|(?= and )|(?<=  )(?=\S)")
"""Boundaries between sentences or columns."""


def language(arguments: Sequence[str], env: Mapping[str, str]) -> str:
    """The language set on an unparsed command line, or in RLCLI_LANG.

    Invalid languages are rejected later, when all settings are checked.
    """
    choices = [env.get(VARIABLE, "").strip()]
    for word, following in pairwise([*arguments, ""]):
        typed = TYPED.fullmatch(word)
        choices += [following] if word == "--lang" else [typed.group(1)] if typed else []
    return choices[-1]


def translator(lang: str) -> Callable[[str], str]:
    """Function that translates English text into `lang`."""
    return _chinese if lang == "zh" else str


def width(text: str) -> int:
    """Terminal columns of `text`; a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


@dataclass(frozen=True, slots=True)
class Entry:
    """A template with gaps, and its translation, which refers to gaps by number or order."""

    source: str
    target: str
    pieces: tuple[str, ...]

    @property
    def weight(self) -> int:
        """How specific the template is: the start of a line counts more than the rest."""
        return sum(map(len, self.pieces)) + 2 * len(self.pieces[0])

    @property
    def key(self) -> str:
        """Text that every matching line contains."""
        return max(self.pieces, key=len)

    def gaps(self, line: str) -> list[str] | None:
        """Texts of the gaps in `line`, each as short as possible; None if it does not match.

        Of adjacent gaps, inside or at the end of the line, the first takes all.
        """
        first, *rest = self.pieces
        if not rest:
            return [] if line == first else None
        *middle, last = rest
        end = len(line) - len(last)
        if not line.startswith(first) or not line.endswith(last) or end < len(first):
            return None
        at, found, joined = len(first), list[str](), 0
        for number, piece in enumerate(middle, start=1):
            if not piece or (piece == " " and not last and number == len(middle)):
                joined += 1
                continue
            start = _find(line, piece, at, end)
            if start < 0:
                return None
            found += [line[at:start], *[""] * joined]
            at, joined = start + len(piece), 0
        return [*found, line[at:end], *[""] * joined]


def _find(line: str, piece: str, start: int, end: int) -> int:
    """Index of `piece` in `line`; prefers a full stop that ends a sentence to one in a name."""
    at = line.find(piece, start, end)
    while piece.endswith(".") and 0 <= at < end - len(piece) and line[at + len(piece)] != " ":
        at = line.find(piece, at + 1, end)
    return at if at >= 0 else line.find(piece, start, end)


def pieces(template: str) -> tuple[str, ...]:
    """The texts around the gaps of a template: one more than the number of gaps."""
    found = [""]
    for text, name, _, _ in Formatter().parse(template):
        found[-1] += text
        if name is not None:
            found.append("")
    return tuple(found)


@cache
def entries() -> tuple[tuple[str, Entry], ...]:
    """(key, entry) of the whole catalogue, most specific first.

    The files hold pairs of lines, English and Chinese; # begins a comment.
    """
    found: list[Entry] = []
    for file in sorted(CATALOGUE.glob("*.txt")):
        lines = file.read_text(encoding="utf-8").splitlines()
        pairs = [line for line in lines if line and not line.startswith("#")]
        for source, target in zip(pairs[::2], pairs[1::2], strict=True):
            found.append(Entry(source, target, pieces(source)))
    found.sort(key=lambda entry: -entry.weight)
    return tuple((entry.key, entry) for entry in found)


def _chinese(text: str) -> str:
    return "\n".join(_line(line) for line in text.split("\n"))


def _line(line: str) -> str:
    text = line.strip()
    if len(line) > LONGEST or not text:
        return line
    translated = _translate(text)
    return line if translated == text else line.replace(text, translated)


def _translate(text: str) -> str:
    """Translate one or more sentences, as far as the catalogue has them."""
    known = [entry for key, entry in entries() if key in text]
    if not known:
        return text
    whole = _sentence(text, known)
    cuts = [match.start() for match in BOUNDARY.finditer(text)]
    for cut in reversed(cuts):
        prefix = _sentence(text[:cut], known)
        if prefix and (whole is None or _is_better_prefix(prefix, whole)):
            return _fill(prefix, text[:cut]) + _gap(text[cut:])
    if whole:
        return _fill(whole, text)
    return _after_colon(text, cuts, known)


def _is_better_prefix(prefix: Entry, whole: Entry) -> bool:
    """Whether `prefix` followed by other text matches better than `whole`."""
    return prefix.weight > whole.weight or (prefix is whole and bool(whole.pieces[-1]))


def _after_colon(text: str, cuts: Sequence[int], known: Sequence[Entry]) -> str:
    """Translate the known end of `text`, or the known part before a colon."""
    for cut in cuts:
        head, rest = text[:cut], text[cut:].strip()
        ended = _sentence(rest, known)
        if ended:
            translated = f"{_gap(head[:-1])}：" if head.endswith(":") else _gap(head)
            return translated + _fill(ended, rest)
        prefix = _sentence(head[:-1], known) if head.endswith(":") else None
        if prefix:
            return f"{_fill(prefix, head[:-1])}：{_translate(rest)}"
    return text


def _sentence(text: str, known: Sequence[Entry]) -> Entry | None:
    """The most specific entry that matches all of `text`."""
    return next((entry for entry in known if entry.gaps(text) is not None), None)


def _fill(entry: Entry, text: str) -> str:
    return entry.target.format(*map(_gap, entry.gaps(text) or []))


def _gap(text: str) -> str:
    """Translate the text of a gap, which may be a sentence: a reason, a hint, an origin."""
    if not any(char.isalpha() for char in text):
        return text
    known = [entry for key, entry in entries() if key in text]
    bare = text.strip()
    translated = _translate(text if _sentence(text, known) else bare)
    return text if translated == bare else translated
