"""Messages about ranks and nodes."""

from __future__ import annotations

from collections.abc import Collection

SHOWN = 8


def named(numbers: Collection[int], unit: str = "rank") -> str:
    """`rank 1`, `ranks 1, 3`, and how many more if they are many."""
    some = sorted(numbers)[:SHOWN]
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return unit + ("" if len(numbers) == 1 else "s") + " " + ", ".join(map(str, some)) + more
