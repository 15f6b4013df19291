"""A judge server, scorers that are closed after the test, and rollouts to score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, Behaviour, JudgeServer

from rlcli.config.rewards import JudgeConfig
from rlcli.rewards.judge import JudgeScorer, circuit_breaker, rate_limiter
from rlcli.types import Prompt, Rollout

KEY = "sk-canary-0123456789"
ENV = {
    "DASHSCOPE_API_KEY": KEY,
    "OPENAI_API_KEY": KEY,
    "GEMINI_API_KEY": KEY,
    "ANTHROPIC_API_KEY": KEY,
}
MODELS = {
    "dashscope": "qwen-plus",
    "openai": "gpt-4o-mini",
    "gemini": "gemini-1.5-flash",
    "claude": "claude-3-haiku-20240307",
}
SDKS = {
    "dashscope": "openai",
    "openai": "openai",
    "gemini": "google.genai",
    "claude": "anthropic",
}
NO_SDK = "pip install -e '.[judge]'"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of milliseconds, and no proxy between the judge and loopback."""
    monkeypatch.setattr(rate_limiter, "BACKOFF_S", 0.005)
    monkeypatch.setattr(rate_limiter, "COOLDOWN_S", 0.05)
    monkeypatch.setattr(circuit_breaker, "BREAK_S", 0.05)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def serve() -> Iterator[Any]:
    """serve(behaviour or Act) -> JudgeServer."""
    servers: list[JudgeServer] = []

    def start(behave: Behaviour | Act) -> JudgeServer:
        made = JudgeServer((lambda call: behave) if isinstance(behave, Act) else behave)
        servers.append(made)
        return made

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def settings() -> Any:
    """settings(server, provider, **fields) -> JudgeConfig; skips where the SDK is missing."""

    def make(server: JudgeServer, provider: str = "openai", **fields: Any) -> JudgeConfig:
        pytest.importorskip(SDKS[provider], reason=NO_SDK)
        path = "/v1" if provider in ("openai", "dashscope") else ""
        given: dict[str, Any] = {
            "enabled": True,
            "provider": provider,
            "model": MODELS[provider],
            "base_url": server.url + path,
            "timeout_s": 60.0,
        }
        return JudgeConfig(**(given | fields))

    return make


@pytest.fixture
def scorer(settings: Any) -> Iterator[Any]:
    """scorer(server, provider, env=..., spent_usd=..., run_dir=..., **fields) -> JudgeScorer."""
    made: list[JudgeScorer] = []

    def make(
        server: JudgeServer,
        provider: str = "openai",
        *,
        env: dict[str, str] | None = None,
        spent_usd: float = 0.0,
        lang: str = "en",
        run_dir: Path | None = None,
        **fields: Any,
    ) -> JudgeScorer:
        config = settings(server, provider, **fields)
        made.append(JudgeScorer(config, env=env or ENV, lang=lang, run_dir=run_dir))
        made[-1].load_state({"spent_usd": spent_usd})
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def answer() -> Any:
    """answer(text, gold="42", prompt="6 * 7?") -> Rollout."""

    def make(text: str, gold: Any = "42", prompt: str = "6 * 7?") -> Rollout:
        return Rollout(
            prompt=Prompt(
                id="a:1",
                messages=({"role": "user", "content": prompt},),
                token_ids=(1,),
                ground_truth=gold,
            ),
            text=text,
            token_ids=(1,),
            logprobs=(0.0,),
            finish_reason="stop",
            policy_version=0,
        )

    return make
