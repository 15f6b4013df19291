"""The roles of a conversation that reward models know."""

from __future__ import annotations

from collections.abc import Sequence

from rlcli.types import Message

ROLES = ("system", "user", "assistant")


def with_known_roles(messages: Sequence[Message]) -> Sequence[Message]:
    """Messages without roles that a reward model's template may refuse: a tool's are the user's.

    Neighbours that both are the user's then become one message.
    """
    if all(message.get("role") in ROLES for message in messages):
        return messages
    merged: list[dict[str, str]] = []
    for message in messages:
        role = message.get("role", "user")
        role = role if role in ROLES else "user"
        if role == "user" and merged and merged[-1]["role"] == "user":
            merged[-1]["content"] += f"\n\n{message['content']}"
        else:
            merged.append({"role": role, "content": message["content"]})
    return merged
