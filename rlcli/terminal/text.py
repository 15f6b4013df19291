"""Format text for a terminal: wrapping, columns, short paths and ages."""

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
"""Seconds between progress lines without a terminal."""


def wrap(text: str, head: str = "", *, line_end: str = "", columns: int = WIDTH) -> list[str]:
    """Wrap `head` and `text` to `columns`, with later lines indented by the width of the head.

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
    """Format rows as columns, two spaces apart; the columns in `right` are right-aligned.

    A left-aligned last column is not padded.
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
    """`path` relative to `cwd` if it is below."""
    return path.relative_to(cwd) if path.is_absolute() and path.is_relative_to(cwd) else path


def age(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `2 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def progress_line(say: Callable[[str], str] = str) -> Callable[[str], None]:
    """Show progress on stderr: one line that is rewritten, or occasional lines without a terminal.

    say: translates it.
    """
    is_terminal = sys.stderr.isatty()
    last_s = [float("-inf")]

    def show(text: str) -> None:
        if is_terminal:
            print(f"\r\x1b[K{say(text)[: WIDTH - 1]}", end="", file=sys.stderr, flush=True)
        elif text and time.monotonic() - last_s[0] >= PLAIN_EVERY_S:
            last_s[0] = time.monotonic()
            print(say(text), file=sys.stderr, flush=True)

    return show
