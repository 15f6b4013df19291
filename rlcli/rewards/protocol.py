"""The words between a scoring process and its parent, besides pickled calls and JSON replies."""

from __future__ import annotations

READY = b"ready"
"""The reward is loaded; its form follows as JSON ("lists" and "columns" of a user's function).

Anything else at this point is the message of a RewardError.
"""
STARTED = b"started"
"""The reward itself begins: from here the caller's clock runs."""
UNSAFE = "unsafe"
"""Last argument of a process that may run code without a sandbox where none works."""
