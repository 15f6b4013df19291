"""Whose API a judge is: keys, address, SDK and models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlcli.config.rewards import JudgeConfig
from rlcli.errors import MissingJudgeError, RewardError


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One API. keys: accepted environment variables, the first wins. module: its SDK.

    url_variables: environment variables that set the address for its SDKs; rlcli ignores them.
    """

    name: str
    keys: tuple[str, ...]
    url_variables: tuple[str, ...]
    base_url: str
    module: str
    default_model: str | None
    suggestions: str


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(
            name="dashscope",
            keys=("DASHSCOPE_API_KEY",),
            url_variables=(
                "DASHSCOPE_HTTP_BASE_URL",
                "DASHSCOPE_BASE_URL",
                "OPENAI_BASE_URL",
                "OPENAI_API_BASE",
            ),
            base_url="https://dashscope.aliyuncs.com/compatible-mode/v1",
            module="openai",
            default_model="qwen-plus",
            suggestions="qwen-plus, qwen-max",
        ),
        Provider(
            name="openai",
            keys=("OPENAI_API_KEY",),
            url_variables=("OPENAI_BASE_URL", "OPENAI_API_BASE"),
            base_url="https://api.openai.com/v1",
            module="openai",
            default_model=None,
            suggestions="gpt-4o-mini, gpt-4o",
        ),
        Provider(
            name="gemini",
            keys=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            url_variables=("GOOGLE_GEMINI_BASE_URL", "GEMINI_BASE_URL"),
            base_url="https://generativelanguage.googleapis.com",
            module="google.genai",
            default_model=None,
            suggestions="gemini-1.5-flash, gemini-1.5-pro; newer: gemini-flash-latest",
        ),
        Provider(
            name="claude",
            keys=("ANTHROPIC_API_KEY", "CLAUDE_API_KEY"),
            url_variables=("ANTHROPIC_BASE_URL", "ANTHROPIC_API_BASE"),
            base_url="https://api.anthropic.com",
            module="anthropic",
            default_model=None,
            suggestions="claude-3-haiku-20240307, claude-3-sonnet-20240229; "
            "newer: claude-haiku-4-5",
        ),
    )
}


def find_key(provider: Provider, env: Mapping[str, str]) -> str:
    """The provider's key, without space around it.

    Raises:
        MissingJudgeError: there is none; names every variable that is accepted.
        RewardError: it cannot be a key; names the variable, never the key.
    """
    name = next((name for name in provider.keys if env.get(name, "").strip()), None)
    if name is None:
        first, *others = provider.keys
        choice = f", nor is {others[0]}" if others else ""
        raise MissingJudgeError(
            f"the {provider.name} judge needs a key: {first} is not set{choice}.\n"
            f"export {first}=your_api_key" + "".join(f"   (or {name})" for name in others)
        )
    key = env[name].strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise RewardError(
            f"{name} holds a character that no key has (a space, a line break or beyond ASCII).\n"
            f"export {name}=your_api_key, copied again."
        )
    return key


def find_model(config: JudgeConfig) -> str:
    """The judge's model. Raises: RewardError when none is named and the provider has no default."""
    provider = PROVIDERS[config.provider]
    model = config.model or provider.default_model
    if model is None:
        raise RewardError(
            f"reward.judge.model is not set, and {provider.name} has no default.\n"
            f"Name one with --rm_model: {provider.suggestions}."
        )
    return model


def members_of(config: JudgeConfig) -> list[JudgeConfig]:
    """The judges of a run, each as the settings of one: the first, then reward.judge.panel.

    A plain MODEL stands at the first judge's address, `provider:MODEL` at that provider's own; a
    colon that follows no provider's name belongs to the model. reward.judge.price is the first's.

    Raises:
        RewardError: a judge without a model, or one that is named twice.
    """
    members = [config.model_copy(update={"model": find_model(config), "panel": []})]
    for entry in config.panel:
        start, colon, rest = (part.strip() for part in entry.partition(":"))
        is_elsewhere = bool(colon) and start in PROVIDERS
        changes = {"model": rest if is_elsewhere else entry.strip(), "price": [], "panel": []}
        if is_elsewhere:
            changes |= {"provider": start, "base_url": None}
        member = config.model_copy(update=changes)
        if not member.model:
            raise RewardError(
                f"reward.judge.panel has {entry!r}, which names no model.\n"
                f"Expected MODEL or provider:MODEL, with one of {', '.join(PROVIDERS)}."
            )
        place = (member.provider, member.model, find_base_url(member))
        if any(place == (one.provider, one.model, find_base_url(one)) for one in members):
            raise RewardError(
                f"reward.judge.panel names {entry}, which is among the judges already.\n"
                "The first judge (--rm_model) is one of the panel by itself: name each other once."
            )
        members.append(member)
    return members


def find_base_url(config: JudgeConfig) -> str:
    """Where calls go: never taken from an SDK's own environment variable.

    Raises:
        RewardError: reward.judge.base_url is no plain http address.
    """
    url = (config.base_url or PROVIDERS[config.provider].base_url).strip().rstrip("/")
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    if scheme not in ("http", "https") or not host or any(c.isspace() for c in url):
        raise RewardError(
            f"reward.judge.base_url={url} is no address; expected http://... or https://..., "
            "for instance --rm_base_url http://localhost:8000/v1"
        )
    if "@" in host:
        raise RewardError(
            "reward.judge.base_url holds a user name or password; keys come from the environment.\n"
            f"Remove what stands before the @, and export {PROVIDERS[config.provider].keys[0]}."
        )
    if "?" in url or "#" in url:
        raise RewardError(
            f"reward.judge.base_url={url.partition('?')[0].partition('#')[0]} is followed by ? or "
            "#, and the path of a call would come after that.\n"
            f"Remove it; a key comes from {PROVIDERS[config.provider].keys[0]}."
        )
    # These two SDKs add the version to the path themselves.
    return url.removesuffix({"claude": "/v1", "gemini": "/v1beta"}.get(config.provider, "\0"))
