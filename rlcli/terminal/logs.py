"""Messages of rlcli: loggers below "rlcli", and the handlers that show them.

Modules log with `logging.getLogger(__name__)`: INFO for what a user should know, WARNING for what
went wrong, DEBUG for what helps to find a fault. Used as a library, rlcli shows nothing by itself.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from rlcli.terminal.i18n import translator

LOGGER = logging.getLogger("rlcli")
LOGGER.addHandler(logging.NullHandler())
LEVELS = {
    "-v": logging.DEBUG,
    "--verbose": logging.DEBUG,
    "-q": logging.WARNING,
    "--quiet": logging.WARNING,
}
"""Options of every command, and the lowest level that they print. Without one: INFO."""
QUIET = logging.WARNING


class Shown(logging.Handler):
    """Gives each message to `show`, translated, with its level.

    rank: named in front if it is not 0.
    """

    def __init__(
        self, show: Callable[[str, int], None], *, lang: str = "en", rank: int = 0
    ) -> None:
        super().__init__()
        self._show, self._translate, self._rank = show, translator(lang), rank

    def emit(self, record: logging.LogRecord) -> None:
        """Show one message; a DEBUG message with its time and logger."""
        text = self._translate(record.getMessage())
        if record.levelno <= logging.DEBUG:
            time = logging.Formatter().formatTime(record, "%H:%M:%S")
            text = f"{time} {record.name}: {text}"
        self._show(f"rank {self._rank}: {text}" if self._rank else text, record.levelno)


def to_stderr(text: str, level: int = QUIET) -> None:
    """Print to stderr, unless --quiet leaves it out. A reader that is gone ends nothing."""
    if is_quiet() and level < QUIET:
        return
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def take_level(words: Sequence[str]) -> tuple[list[str], int]:
    """A command line without -v and --quiet, and the level that they ask for."""
    level = next((LEVELS[word] for word in reversed(words) if word in LEVELS), logging.INFO)
    return [word for word in words if word not in LEVELS], level


_printed_from = logging.INFO


def set_level(level: int) -> None:
    """Print messages of `level` and above. INFO messages are logged in any case."""
    global _printed_from
    _printed_from = level
    LOGGER.setLevel(min(level, logging.INFO))


def is_quiet() -> bool:
    """Whether only warnings and results are printed."""
    return _printed_from >= QUIET


def show_with(handler: Shown) -> None:
    """Let `handler` show rlcli's messages, in place of the one before. Others' handlers stay."""
    for other in _shown():
        LOGGER.removeHandler(other)
    LOGGER.addHandler(handler)
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)


@contextmanager
def collected(*, prefix: str = "", lang: str = "en", prints: bool = True) -> Iterator[list[str]]:
    """The messages logged inside, also printed to stderr behind `prefix`."""
    messages: list[str] = []
    translate = translator(lang)

    def keep(text: str, level: int) -> None:
        messages.append(text)
        if prints:
            to_stderr(translate(prefix + text), level)

    before = _shown()
    handler = Shown(keep)
    show_with(handler)
    try:
        yield messages
    finally:
        LOGGER.removeHandler(handler)
        for each in before:
            LOGGER.addHandler(each)


def _shown() -> list[Shown]:
    return [each for each in LOGGER.handlers if isinstance(each, Shown)]
