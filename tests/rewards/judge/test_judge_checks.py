"""What is found before a model loads: settings without a network, and one probe call."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from judge_server import Act

from rlcli.config.rewards import JudgeConfig
from rlcli.errors import MissingJudgeError, RewardError
from rlcli.rewards.base import score_all
from rlcli.rewards.judge import check_judge, probe_judge
from rlcli.rewards.judge.providers import PROVIDERS

KEY = "sk-canary-0123456789"
KEYS = {
    "dashscope": ("DASHSCOPE_API_KEY",),
    "openai": ("OPENAI_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "claude": ("ANTHROPIC_API_KEY", "CLAUDE_API_KEY"),
}
MODELS = {
    "openai": "gpt-4o-mini",
    "gemini": "gemini-1.5-flash",
    "claude": "claude-3-haiku-20240307",
}
DASHSCOPE = {"DASHSCOPE_API_KEY": KEY}

for _module in ("openai", "anthropic", "google.genai"):
    pytest.importorskip(_module, reason="pip install -e '.[judge]'")


def refused(env: dict[str, str] | None = None, **fields: Any) -> str:
    with pytest.raises(RewardError) as caught:
        check_judge(JudgeConfig(enabled=True, **fields), DASHSCOPE if env is None else env)
    assert KEY not in str(caught.value)
    assert str(caught.value).count("\n") <= 2
    return str(caught.value)


@pytest.mark.parametrize("provider", KEYS)
def test_a_missing_key_names_every_variable_that_is_accepted(provider: str) -> None:
    for env in ({}, dict.fromkeys(KEYS[provider], "  ")):
        message = refused(env, provider=provider, model="m")
        assert all(name in message for name in KEYS[provider])
        assert f"export {KEYS[provider][0]}=" in message


@pytest.mark.parametrize("provider", MODELS)
def test_only_dashscope_has_a_model_of_its_own(provider: str) -> None:
    message = refused({KEYS[provider][0]: KEY}, provider=provider)
    assert "--rm_model" in message
    assert MODELS[provider] in message
    assert "qwen-plus" in check_judge(JudgeConfig(), DASHSCOPE)[0]


def test_a_key_that_cannot_be_one_is_named_but_not_shown() -> None:
    message = refused({"DASHSCOPE_API_KEY": f"{KEY}\nsecond"})
    assert "DASHSCOPE_API_KEY" in message
    assert "second" not in message


def test_a_missing_sdk_gives_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(MissingJudgeError, match="pip install -e"):
        check_judge(JudgeConfig(), DASHSCOPE)


def test_the_address_is_always_told_and_must_be_one() -> None:
    notes = check_judge(JudgeConfig(), DASHSCOPE | {"OPENAI_BASE_URL": "http://elsewhere"})
    assert "https://dashscope.aliyuncs.com/compatible-mode/v1" in notes[0]
    assert "elsewhere" not in " ".join(notes)
    own = check_judge(JudgeConfig(base_url="http://judge.example/v1/"), DASHSCOPE)
    assert "http://judge.example/v1," in own[0]
    assert "not encrypted" in " ".join(own)
    assert "not encrypted" not in " ".join(
        check_judge(JudgeConfig(base_url="http://localhost:8000/v1"), DASHSCOPE)
    )
    assert "is no address" in refused(base_url="judge.example")
    message = refused(base_url="https://me:hunter2@judge.example/v1")
    assert "hunter2" not in message
    message = refused(base_url="https://judge.example/v1?key=hunter2")
    assert "hunter2" not in message
    assert "DASHSCOPE_API_KEY" in message


@pytest.mark.parametrize(("provider", "end"), [("claude", "/v1"), ("gemini", "/v1beta/")])
def test_a_version_that_the_sdk_adds_by_itself_may_be_typed(
    provider: str, end: str, serve: Any, settings: Any
) -> None:
    server = serve(Act())
    config = settings(server, provider, base_url=server.url + end)
    assert probe_judge(config, {KEYS[provider][0]: KEY}) == []


def test_the_first_of_two_keys_is_used_and_told() -> None:
    config = JudgeConfig(provider="gemini", model="gemini-1.5-flash")
    notes = check_judge(config, {"GEMINI_API_KEY": "a", "GOOGLE_API_KEY": "b"})
    assert "GEMINI_API_KEY is used, GOOGLE_API_KEY is not." in notes


def test_a_budget_needs_a_price() -> None:
    message = refused(model="my-own-model", max_cost=5.0)
    assert "no price is known" in message
    assert "reward.judge.price" in message
    assert "tokens are counted" in " ".join(check_judge(JudgeConfig(model="mine"), DASHSCOPE))
    assert "at most $5 in all" in " ".join(check_judge(JudgeConfig(max_cost=5.0), DASHSCOPE))


def test_a_price_that_is_set_stands_in_for_the_tables() -> None:
    notes = check_judge(JudgeConfig(model="mine", price=[0.5, 2.0], max_cost=5.0), DASHSCOPE)
    assert "judge price of mine: $0.5 in, $2 out per million tokens (as set)." in notes
    free = check_judge(JudgeConfig(model="mine", price=[0.0, 0.0], max_cost=5.0), DASHSCOPE)
    assert "judge price of mine: $0 in, $0 out per million tokens (as set)." in free


@pytest.mark.parametrize("price", [[1.0], [1.0, 2.0, 3.0]])
def test_a_price_is_two_numbers(price: list[float]) -> None:
    assert "expected two numbers" in refused(price=price)


def test_checking_imports_no_sdk() -> None:
    code = (
        "import sys\n"
        "from rlcli.config.rewards import JudgeConfig\n"
        "from rlcli.rewards.judge import check_judge\n"
        "check_judge(JudgeConfig(), {'DASHSCOPE_API_KEY': 'k'})\n"
        "print(*({'openai', 'anthropic', 'google.genai', 'httpx2', 'torch'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("provider", KEYS)
def test_a_probe_that_is_answered_says_nothing(provider: str, serve: Any, settings: Any) -> None:
    server = serve(Act())
    config = settings(server, provider)
    assert probe_judge(config, {KEYS[provider][0]: KEY}) == []
    assert len(server.calls) == 1


def test_a_probe_tells_when_another_model_answers(serve: Any, settings: Any) -> None:
    config = settings(serve(Act(model="small-one")), "dashscope")
    assert probe_judge(config, DASHSCOPE) == [
        "the judge asked for is qwen-plus; small-one answers."
    ]


@pytest.mark.parametrize(
    ("asked", "found", "is_same"),
    [
        ("qwen-plus", "qwen-plus-2025-07-28", True),
        ("gpt-4", "gpt-4-0613", True),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku", True),
        ("gemini-2.0-flash", "models/gemini-2.0-flash-001", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o-mini", "gpt-4o", False),
    ],
)
def test_a_release_of_a_model_is_that_model_and_a_smaller_one_is_not(
    asked: str, found: str, is_same: bool, serve: Any, settings: Any
) -> None:
    config = settings(serve(Act(model=found)), "dashscope", model=asked)
    assert (probe_judge(config, DASHSCOPE) == []) == is_same


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (Act(status=401, error={"error": {"message": f"bad key {KEY}"}}), "DASHSCOPE_API_KEY"),
        (Act(status=404, error={"error": {"message": "no such model"}}), "--rm_model"),
        (Act(status=400, error={"error": {"message": "what?"}}), "--rm_base_url"),
        (Act(status=500), "network"),
        (Act(text="I would rather not."), "I would rather not."),
    ],
)
def test_a_probe_that_fails_refuses_the_run_without_the_key(
    act: Act, expected: str, serve: Any, settings: Any
) -> None:
    config = settings(serve(act), "dashscope")
    with pytest.raises(RewardError) as caught:
        probe_judge(config, DASHSCOPE)
    assert expected in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_probe_that_meets_a_rate_limit_lets_the_run_begin(serve: Any, settings: Any) -> None:
    config = settings(serve(Act(status=429, headers={"retry-after": "60"})), "dashscope")
    assert "rate limit" in probe_judge(config, DASHSCOPE)[0]


@pytest.mark.parametrize("provider", KEYS)
def test_a_key_that_the_judge_repeats_is_not_passed_on(
    provider: str, serve: Any, scorer: Any, answer: Any
) -> None:
    said = {
        "2": Act(text=f"no: {KEY}"),  # the probe
        "told": Act(text=f'{{"reason": "you are {KEY}", "score": 8}}', model=KEY),
        "bad": Act(text=f"{'x' * 105} {KEY}"),
    }
    judge = scorer(serve(lambda call: said[call.response]), provider)
    told, bad = score_all(judge, [answer("told"), answer("bad")])
    assert (told.value, told.reason) == (pytest.approx(7 / 9), "you are ***")
    assert "sk-canary" not in repr(bad)
    with pytest.raises(RewardError) as caught:
        probe_judge(judge._config, {KEYS[provider][0]: KEY})
    assert "sk-canary" not in str(caught.value)


def test_a_word_that_stands_in_for_a_key_breaks_no_verdict(
    serve: Any, scorer: Any, answer: Any
) -> None:
    judge = scorer(serve(Act()), env={"OPENAI_API_KEY": "score"})
    assert score_all(judge, [answer("It is 42.")])[0].value == pytest.approx(7 / 9)


def test_a_key_never_shows(
    serve: Any, scorer: Any, answer: Any, capfd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Echoed by the server, in a repr, in an error: the canary is nowhere."""
    caplog.set_level("DEBUG")
    server = serve(Act(status=500, error={"error": {"message": f"you sent {KEY}"}}))
    for provider in KEYS:
        judge = scorer(server, provider)
        reward = score_all(judge, [answer("It is 42.")])[0]
        assert reward.error
        assert KEY not in repr(reward) + repr(judge) + repr(judge._members) + repr(vars(judge))
    out, err = capfd.readouterr()
    assert KEY not in out + err + caplog.text


@pytest.mark.parametrize(
    ("provider", "variable"),
    [
        ("openai", "OPENAI_BASE_URL"),
        ("dashscope", "OPENAI_BASE_URL"),
        ("dashscope", "DASHSCOPE_HTTP_BASE_URL"),
        ("claude", "ANTHROPIC_BASE_URL"),
        ("gemini", "GOOGLE_GEMINI_BASE_URL"),
    ],
)
def test_an_sdks_own_address_variable_is_announced_as_unused(
    provider: str, variable: str, serve: Any, settings: Any
) -> None:
    server = serve(Act())
    config = settings(server, provider)
    keys = dict.fromkeys(PROVIDERS[provider].keys[:1], KEY)
    elsewhere = {**keys, variable: "https://me:hunter2@elsewhere.example/v1"}
    (note,) = [note for note in check_judge(config, elsewhere) if variable in note]
    assert "--rm_base_url" in note
    assert "hunter2" not in note
    probe_judge(config, elsewhere)
    assert len(server.calls) == 1
    same = {**keys, variable: f"{config.base_url}/"}
    assert variable not in " ".join(check_judge(config, same))
