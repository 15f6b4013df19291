"""What a group of settings is, and the numbers settings hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MOST = 1_000_000_000
"""More of anything that is counted is a slip, and would overflow or never end."""
Positive = Annotated[int, Field(ge=1, le=MOST)]
NonNegative = Annotated[int, Field(ge=0, le=MOST)]
Interval = Annotated[int, Field(ge=-1, le=MOST)]
Count = Annotated[int, Field(ge=1, le=65_536)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A group of settings: unknown names are refused, values are not changed after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def leaves(section: Section, prefix: str = "") -> dict[str, Any]:
    """Dotted key to value of every setting in `section` and the sections inside it."""
    flat: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        key = f"{prefix}{name}"
        flat |= leaves(value, f"{key}.") if isinstance(value, Section) else {key: value}
    return flat
