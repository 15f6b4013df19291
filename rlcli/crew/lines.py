"""Names of ranks in messages, and the message about missing ranks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from rlcli.errors import RankLostError
from rlcli.lang import translator

FIRST_WORD_S = 10.0
SHOWN = 8


def speaker(lang: str) -> Callable[[str], None]:
    """What tells whoever looks on, in `lang`, while there is no console yet."""
    translate = translator(lang)

    def tell(text: str) -> None:
        with suppress(OSError, ValueError):  # nobody looks on any more
            print(translate(text), file=sys.stderr, flush=True)

    return tell


def named(ranks: Collection[int]) -> str:
    """`rank 1`, `ranks 1, 3`, and how many more where they are many."""
    some = sorted(ranks)[:SHOWN]
    more = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, some)) + more


class Missing:
    """Says now and then which ranks are waited for, and gives up after `limit_s`."""

    def __init__(self, tell: Callable[[str], None], *, limit_s: float) -> None:
        self._tell, self._limit_s = tell, limit_s
        self._begun_s = time.monotonic()
        self._next_word_s = FIRST_WORD_S

    def look(self, ranks: Collection[int]) -> None:
        """These are not there. Raises: RankLostError."""
        seconds = time.monotonic() - self._begun_s
        if seconds >= self._limit_s:
            raise RankLostError(f"{named(ranks)} did not come within {self._limit_s:g} s")
        if seconds >= self._next_word_s:
            self._next_word_s = 2 * seconds
            self._tell(f"waiting for {named(ranks)} ({seconds:.0f} s)")
