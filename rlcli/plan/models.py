"""Find a model's shape by name, from its config.json or the table of well-known models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import log
from pathlib import Path
from typing import Any, Literal

import yaml

from rlcli import hub
from rlcli.errors import ModelError, ModelNotFoundError
from rlcli.plan.shapes import ModelShape, shape_of
from rlcli.setup.start_model import plain_path

TABLE = Path(__file__).with_name("models.yaml")
_FAMILY_AND_SIZE = re.compile(r"([A-Za-z]+)[\d.]*-(\d+(?:\.\d+)?B)(?![\w])")
_SIZE = re.compile(r"-\d+(?:\.\d+)?[MB]\b", re.IGNORECASE)
POSITION_BUCKETS = 256
"""position_buckets of every deberta-v3: in its config.json, but not in the table."""


def find_shape(path: str, *, source: Literal["hf", "modelscope"] = "hf") -> ModelShape:
    """The shape of a built-in or local model, or one in the hub's cache, the table or the hub.

    Raises: ModelError if the model is in none of these.
    """
    path = plain_path(path, source=source)
    try:
        return shape_of(hub.find_model_config(path, hub=source, offline=True), name=path)
    except ModelError as error:
        # only a hub name can be in the table or on the hub
        known = known_config(path) if _is_hub_name(path) else None
        if known is not None:
            return shape_of(known, name=path)
        if not isinstance(error, ModelNotFoundError) or not _is_hub_name(path):
            raise
    try:
        return shape_of(hub.find_model_config(path, hub=source), name=path)
    except ModelNotFoundError:
        similar = similar_model(path)
        if similar is None:
            raise
        return shape_of(dict(known_models()[similar]), name=f"{path} (taken for {similar})")


def similar_model(path: str) -> str | None:
    """The model in the table with the same family and size as `path`, or None.

    Guides name Qwen2-14B, which was never published.
    """
    name = path.rsplit("/", 1)[-1]
    parts = _FAMILY_AND_SIZE.match(name)
    if parts is None:
        return None
    matches = {key: _FAMILY_AND_SIZE.match(key) for key in known_models()}
    found = [
        key
        for key, match in matches.items()
        if match and match.group(0) == key and match.groups() == parts.groups()
    ]
    # Qwen2-14B is nearer to Qwen2.5-14B than to Qwen3-14B
    generation = name[: len(parts.group(1)) + 1]
    return min([key for key in found if key.startswith(generation)] or found, default=None)


def _is_hub_name(path: str) -> bool:
    is_path = path.startswith((hub.BUILTIN, ".", "/", "~")) or Path(path).is_dir()
    return not is_path and path.count("/") == 1


def known_config(path: str) -> dict[str, Any] | None:
    """config.json of a well-known model under any owner's name; None if not in the table."""
    name = path.rsplit("/", 1)[-1].lower()
    table = known_models()
    matches = [key for key in table if name == key.lower() or name.startswith(key.lower() + "-")]
    return dict(table[max(matches, key=len)]) if matches else None


@cache
def known_models() -> Mapping[str, Mapping[str, Any]]:
    """Name -> values of config.json, for every model in the table."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    columns = table.pop("columns")
    return {
        name: {
            **dict(zip(columns, row, strict=True)),
            "model_type": kind,
            "position_buckets": POSITION_BUCKETS,
        }
        for kind, models in table.items()
        for name, row in models.items()
    }


def shape_of_size(billions: float) -> ModelShape:
    """A Qwen 2.5 of about this size, with exactly this parameter count."""
    nearest = min(
        family_of("Qwen2.5-7B"), key=lambda shape: abs(log(shape.parameters / 1e9 / billions))
    )
    more = round(billions * 1e9) - nearest.parameters
    return replace(nearest, extra_parameters=nearest.extra_parameters + more)


def family_of(path: str) -> list[ModelShape]:
    """The well-known models whose names differ from `path` only in size."""
    stem = _stem(path.rsplit("/", 1)[-1])
    return [
        shape_of(dict(values), name=name)
        for name, values in known_models().items()
        if stem is not None and _stem(name) == stem
    ]


def _stem(name: str) -> str | None:
    found = _SIZE.search(name)
    return name[: found.start()].lower() if found else None
