"""Convert human labels of responses to numbers."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from rlcli.data.files import printable
from rlcli.errors import DataError

GOOD = (
    "yes y true t correct right good pass passed accept accepted positive pos chosen win "
    "是 对 正确 好 通过 合格"
)
BAD = (
    "no n false f incorrect wrong bad fail failed reject rejected negative neg lose loss "
    "否 不是 错 不对 错误 不正确 差 不好 未通过 不通过 不合格"
)
"""Negative labels."""
WORDS = dict.fromkeys(GOOD.split(), 1.0) | dict.fromkeys(BAD.split(), 0.0)


def read_label(value: Any, where: str) -> float:
    """1 or 0 for a word or a boolean, a number as it is.

    Raises: DataError for anything else.
    """
    if isinstance(value, bool):
        return float(value)
    word = str(value).strip().casefold()
    if word in WORDS:
        return WORDS[word]
    try:
        number = float(word) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{where} is {printable(repr(value), 40)}, expected true or false, a number, or a word "
            "such as good, bad, correct, wrong."
        )
    return number


def is_binary(labels: Collection[float]) -> bool:
    """Whether all labels are 0 or 1."""
    return set(labels) <= {0.0, 1.0}
