"""Messages about ranks and nodes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from contextlib import suppress

from rlcli.terminal.i18n import translator

SHOWN = 8


def speaker(lang: str) -> Callable[[str], None]:
    """Prints messages to stderr in `lang`, while there is no console."""
    translate = translator(lang)

    def tell(text: str) -> None:
        with suppress(OSError, ValueError):  # the reader of stderr may be gone; the run goes on
            print(translate(text), file=sys.stderr, flush=True)

    return tell


def named(numbers: Collection[int], unit: str = "rank") -> str:
    """`rank 1`, `ranks 1, 3`, and how many more if they are many."""
    some = sorted(numbers)[:SHOWN]
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return unit + ("" if len(numbers) == 1 else "s") + " " + ", ".join(map(str, some)) + more
