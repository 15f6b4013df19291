"""A comparison in a terminal: the table, and what it does not say by itself."""

from __future__ import annotations

from collections.abc import Sequence

from rlcli.config.resolved import show
from rlcli.terminal.text import in_columns, wrap
from rlcli.tools.compare import Result, Row, unlike_settings

HEAD = ("", "before", "after", "best", "reward var", "wall s", "CPU s", "MiB")
NAME_WIDTH = 20


def report_lines(rows: Sequence[Row], results: Sequence[Result]) -> list[str]:
    """All there is to say, in at most 80 columns."""
    lines = ["", *table_lines(rows), ""]
    seeds = ", ".join(map(str, sorted({seed for row in rows for seed in row.seeds})))
    lines += wrap(
        f"Held-out pass@1 and means over seeds ({seeds}); +- is the standard deviation. reward "
        "var: between neighbouring steps. wall, CPU: of the process and its children; MiB: their "
        "peak in main memory."
    )
    if any(not row.is_whole for row in rows):
        lines += wrap("~ not measured from start to end: steps and evaluations only.")
    for key, values in unlike_settings(results).items():
        lines += wrap(f"The rows also differ in {key}: {', '.join(map(show, values))}.")
    for result in results:
        if result.state != "finished":
            lines += wrap(f"{result.path} is not finished: {result.state}.")
    return lines


def table_lines(rows: Sequence[Row]) -> list[str]:
    """The table in at most 80 columns; a long name has a line of its own."""
    cells = [HEAD, *map(_cells, rows)]
    long = [name if len(name) > NAME_WIDTH else "" for name, *_ in cells]
    shown = [["" if alone else row[0], *row[1:]] for alone, row in zip(long, cells, strict=True)]
    lines = in_columns(shown, right=range(1, len(HEAD)))
    return [part for pair in zip(long, lines, strict=True) for part in pair if part]


def _cells(row: Row) -> tuple[str, ...]:
    spread = "" if row.after_std is None else f" +- {row.after_std:.1%}".rstrip("%")
    about = "" if row.is_whole else "~"
    return (
        row.name,
        _shown(row.before, ".1%"),
        _shown(row.after, ".1%") + spread,
        _shown(row.best, ".1%"),
        _shown(row.reward_variance, ".1e"),
        _shown(row.wall_s, ".0f", about),
        _shown(row.cpu_s, ".0f", about),
        _shown(row.peak_mib, ".0f", about),
    )


def _shown(value: float | None, form: str, about: str = "") -> str:
    return "-" if value is None else f"{about}{value:{form}}"
