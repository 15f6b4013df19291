"""Which settings changed, and which of them do not matter to whom."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from rlcli.config.names import RENAMED
from rlcli.config.schema import defaults

_MISSING = object()
NAMES = ("algorithm.name", "run.name", "run.output_dir", "run.resume")
"""What a configuration is called: no difference in itself."""
_OF_RUN = tuple(key for key in defaults() if key.startswith("run."))
HOUSEKEEPING = (*NAMES, *(key for key in _OF_RUN if key not in ("run.seed", "run.eval_every")))
"""What changes none of a run's numbers."""
PER_SESSION = (
    *(key for key in _OF_RUN if key != "run.seed"),
    "rollout.url",
    "reward.timeout_s",
    "reward.workers",
    "reward.judge.concurrency",
    "reward.judge.rpm",
    "reward.judge.tpm",
    "reward.judge.max_cost",
    "reward.judge.timeout_s",
    "reward.judge.price",
    "reward.judge.cache",
    "reward.judge.canary_every",
    "train.max_steps",
    "train.epochs",
)
"""Settings that a run which goes on may change without a word."""
TENSORS = ("model.path", "lora.rank", "lora.targets", "critic.path")
"""Settings that say which tensors a checkpoint holds."""


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], *, free: Collection[str] = NAMES
) -> list[tuple[str, Any, Any]]:
    """(key, value before, value after) of every setting that both have and that differs.

    Both by dotted key. free: settings that are let go. One that only a later version has is none
    that changed.
    """
    return [
        (key, before[key], value)
        for key, value in after.items()
        if key in before and before[key] != value and key not in free
    ]


def by_key(written: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config.json by dotted key, those with an old name by their new one.

    A setting may itself be a mapping.
    """
    names = {key: key for key in defaults()} | RENAMED
    found = [(new, _value_at(written, name)) for name, new in names.items()]
    return {key: value for key, value in found if value is not _MISSING}


def _value_at(written: Mapping[str, Any], name: str) -> Any:
    value: Any = written
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = cast("dict[str, Any]", value)[part]
    return value
