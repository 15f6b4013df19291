"""Connects to a judge through its provider's SDK, which is imported only then."""

from __future__ import annotations

from rlcli.rewards.judge.client import Access, Connection


def connect(access: Access) -> Connection:
    """A connection through the provider's SDK."""
    if access.provider == "gemini":
        from rlcli.rewards.judge.gemini_client import GeminiConnection

        return GeminiConnection(access)
    if access.provider == "claude":
        from rlcli.rewards.judge.anthropic_client import ClaudeConnection

        return ClaudeConnection(access)
    from rlcli.rewards.judge.openai_client import OpenAIConnection

    return OpenAIConnection(access)
