"""What an environment returns, in any of its forms, and what it gets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

FIELDS = ("messages", "reward", "done", "parts")
"""Of what step() returns."""


class Reply:
    """What the model wrote in one turn, as step(reply) gets it: text and tool_calls."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.text: str = given["text"]
        self.tool_calls: list[dict[str, Any]] = given["tool_calls"]
        self.is_truncated: bool = given["is_truncated"]

    def __str__(self) -> str:
        return self.text


def to_json(value: Any) -> str:
    """JSON text; numpy's numbers and arrays as numbers and lists, anything else unknown as text."""
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def finite(value: Any) -> float:
    """Raises: ValueError for a reward that is not finite."""
    score = float(value)
    if not math.isfinite(score):
        raise ValueError(f"a reward must be a finite number, got {score}")
    return score


def read_messages(given: Any) -> list[dict[str, Any]]:
    """Messages; text is a user's message. Raises: TypeError for anything else."""
    if given is None:
        return []
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if isinstance(given, Mapping):
        given = [given]
    out = []
    for message in given:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise TypeError(f"expected messages with role and content, got {message!r:.100}")
        out.append({**message, "role": str(message.get("role") or "user")})
    return out


def read_step(given: Any) -> dict[str, Any]:
    """What step() returned, in any of its forms, as messages, reward, done and parts."""
    if isinstance(given, tuple):  # Gymnasium: observation, reward, terminated[, truncated], info
        messages, reward, *ends = given
        flags = [bool(end) for end in ends if not isinstance(end, Mapping)]
        fields: dict[str, Any] = {"messages": messages, "reward": reward, "done": any(flags)}
    elif isinstance(given, Mapping):
        fields = dict(given)
    elif isinstance(given, str):
        fields = {"messages": given}
    else:
        fields = {name: getattr(given, name) for name in FIELDS if hasattr(given, name)}
        if not fields:
            raise TypeError(f"step returned {given!r:.100}, expected a dict with some of {FIELDS}")
    if unknown := set(fields) - set(FIELDS):
        raise TypeError(f"step returned {', '.join(sorted(unknown))}: not known")
    reward = fields.get("reward")
    parts = fields.get("parts") or {}
    return {
        "messages": read_messages(fields.get("messages")),
        "reward": None if reward is None else finite(reward),
        "done": bool(fields.get("done")),
        "parts": {str(name): finite(value) for name, value in parts.items()},
    }
