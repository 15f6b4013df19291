"""The user's language: the code speaks English, and a catalogue translates what it prints."""

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
"""Characters of a line that is worth a look; longer ones are a user's data."""
BOUNDARY: Final = re.compile(r"(?<=[.:;]) | (?=\()|(?=, )|(?= and )|(?<=  )(?=\S)")
"""Where one sentence or column ends and another may begin."""


def language(arguments: Sequence[str], env: Mapping[str, str]) -> str:
    """What a command line asks for, before it is parsed; else what RLCLI_LANG asks for.

    A language that is none is refused where all settings are checked.
    """
    asked = [env.get(VARIABLE, "").strip()]
    for word, following in pairwise([*arguments, ""]):
        typed = TYPED.fullmatch(word)
        asked += [following] if word == "--lang" else [typed.group(1)] if typed else []
    return asked[-1]


def translator(lang: str) -> Callable[[str], str]:
    """What turns English text into `lang`."""
    return _chinese if lang == "zh" else str


def width(text: str) -> int:
    """Columns that `text` takes in a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line with gaps, and its translation, which names the gaps by number or in order."""

    source: str
    target: str
    pieces: tuple[str, ...]

    @property
    def weight(self) -> int:
        """How much it tells: how a line begins tells more than what stands somewhere in it."""
        return sum(map(len, self.pieces)) + 2 * len(self.pieces[0])

    @property
    def key(self) -> str:
        """Text that every line of this kind has."""
        return max(self.pieces, key=len)

    def gaps(self, line: str) -> list[str] | None:
        """What fills the gaps in `line`, each as short as can be; None for another line.

        Of gaps that touch, or end the line side by side, the first takes all.
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
    """Where `piece` is in `line`: a full stop is rather that of a sentence than of a name."""
    at = line.find(piece, start, end)
    while piece.endswith(".") and 0 <= at < end - len(piece) and line[at + len(piece)] != " ":
        at = line.find(piece, at + 1, end)
    return at if at >= 0 else line.find(piece, start, end)


def pieces(template: str) -> tuple[str, ...]:
    """The text around the gaps of a template: one more than there are gaps."""
    found = [""]
    for text, name, _, _ in Formatter().parse(template):
        found[-1] += text
        if name is not None:
            found.append("")
    return tuple(found)


@cache
def entries() -> tuple[tuple[str, Entry], ...]:
    """(key, entry) of the whole catalogue, the most telling first.

    The files hold pairs of lines, English and Chinese; # begins a comment.
    """
    found: list[Entry] = []
    for file in sorted(CATALOGUE.glob("*.txt")):
        lines = file.read_text(encoding="utf-8").splitlines()
        told = [line for line in lines if line and not line.startswith("#")]
        for source, target in zip(told[::2], told[1::2], strict=True):
            found.append(Entry(source, target, pieces(source)))
    found.sort(key=lambda entry: -entry.weight)
    return tuple((entry.key, entry) for entry in found)


def _chinese(text: str) -> str:
    return "\n".join(_line(line) for line in text.split("\n"))


def _line(line: str) -> str:
    words = line.strip()
    if len(line) > LONGEST or not words:
        return line
    said = _said(words)
    return line if said == words else line.replace(words, said)


def _said(words: str) -> str:
    """One or more sentences in Chinese, as far as they are known."""
    known = [entry for key, entry in entries() if key in words]
    if not known:
        return words
    whole = _sentence(words, known)
    cuts = [match.start() for match in BOUNDARY.finditer(words)]
    for cut in reversed(cuts):
        begun = _sentence(words[:cut], known)
        if begun and (whole is None or _tells_more(begun, whole)):
            return _filled(begun, words[:cut]) + _gap(words[cut:])
    if whole:
        return _filled(whole, words)
    return _after_colon(words, cuts, known)


def _tells_more(begun: Entry, whole: Entry) -> bool:
    """Whether a line is rather `begun` and something else than `whole`."""
    return begun.weight > whole.weight or (begun is whole and bool(whole.pieces[-1]))


def _after_colon(words: str, cuts: Sequence[int], known: Sequence[Entry]) -> str:
    """`words` with the Chinese of what is known at their end, or before a colon."""
    for cut in cuts:
        head, rest = words[:cut], words[cut:].strip()
        ended = _sentence(rest, known)
        if ended:
            said = f"{_gap(head[:-1])}：" if head.endswith(":") else _gap(head)
            return said + _filled(ended, rest)
        begun = _sentence(head[:-1], known) if head.endswith(":") else None
        if begun:
            return f"{_filled(begun, head[:-1])}：{_said(rest)}"
    return words


def _sentence(words: str, known: Sequence[Entry]) -> Entry | None:
    """The most telling entry that all of `words` is made from."""
    return next((entry for entry in known if entry.gaps(words) is not None), None)


def _filled(entry: Entry, words: str) -> str:
    return entry.target.format(*map(_gap, entry.gaps(words) or []))


def _gap(text: str) -> str:
    """What fills a gap may itself be a sentence: a reason, a hint, an origin."""
    if not any(char.isalpha() for char in text):
        return text
    known = [entry for key, entry in entries() if key in text]
    bare = text.strip()
    said = _said(text if _sentence(text, known) else bare)
    return text if said == bare else said
