"""Text for a terminal: wrapped, in columns, and short words for paths and ages."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from rlcli.terminal.i18n import width

WIDTH: Final = 80
PLAIN_EVERY_S: Final = 10.0
"""Seconds between progress lines where there is no terminal to rewrite one on."""


def wrap(text: str, head: str = "", *, line_end: str = "", columns: int = WIDTH) -> list[str]:
    """`head` and `text` in lines of at most `columns`, the later ones as far in as the head is.

    line_end joins the lines of a command, so that it can still be pasted.
    """
    lines = textwrap.wrap(
        text,
        columns - len(line_end),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [*(line + line_end for line in lines[:-1]), *lines[-1:]]


def in_columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """A line per row, two blanks between cells; the columns in `right` end at the same place.

    A last column at the left is as long as it is.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for at, (cell, room) in enumerate(zip(row, widths, strict=True)):
            blanks = " " * (room - width(cell))
            is_open = at == len(row) - 1
            cells.append(blanks + cell if at in right else cell if is_open else cell + blanks)
        lines.append("  ".join(cells).rstrip())
    return lines


def short_path(path: Path, cwd: Path) -> Path:
    """`path` as seen from `cwd` where it lies below."""
    return path.relative_to(cwd) if path.is_absolute() and path.is_relative_to(cwd) else path


def age(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `2 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def progress_line(say: Callable[[str], str] = str) -> Callable[[str], None]:
    """Shows on stderr what is waited for: one line rewritten, or now and then a line of its own.

    say: translates it.
    """
    is_terminal = sys.stderr.isatty()
    last_s = [float("-inf")]

    def tell(text: str) -> None:
        if is_terminal:
            print(f"\r\x1b[K{say(text)[: WIDTH - 1]}", end="", file=sys.stderr, flush=True)
        elif text and time.monotonic() - last_s[0] >= PLAIN_EVERY_S:
            last_s[0] = time.monotonic()
            print(say(text), file=sys.stderr, flush=True)

    return tell
