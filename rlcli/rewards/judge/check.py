"""What can be said of a judge before a model is loaded: without the network, and with one call."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlcli.config.rewards import JudgeConfig
from rlcli.errors import MissingJudgeError, RewardError, RewardServiceError
from rlcli.rewards.judge.budget import Budget, price_date, price_of
from rlcli.rewards.judge.cache import check_cache
from rlcli.rewards.judge.call import Asker, Verdict
from rlcli.rewards.judge.client import Access, access_of
from rlcli.rewards.judge.connect import connect
from rlcli.rewards.judge.faults import Fault, Kind
from rlcli.rewards.judge.panel_member import temperature_of
from rlcli.rewards.judge.providers import PROVIDERS, Provider, find_base_url, members_of
from rlcli.rewards.judge.rate_limiter import RateLimiter
from rlcli.rewards.judge.templates import Template, load_template, render, values_of

LOOPBACK = ("localhost", "127.", "[::1]")
PROBE_TRIES = 3
PROBE_DEADLINE_S = 20.0
OUTSIDE = frozenset({Kind.KEY, Kind.MONEY, Kind.TRANSIENT})
"""What ends without a change of the settings."""
_RELEASE = re.compile(r"(?:[-@:](?:\d[\w.-]*|latest|preview\S*|exp\S*))?")
"""What follows the name of a model that is one release of it."""
QUESTION = ({"role": "user", "content": "What is 1 + 1?"},)


def check_judge(config: JudgeConfig, env: Mapping[str, str], *, lang: str = "en") -> list[str]:
    """Notes on a judge, or a panel, whose settings are complete. Touches no network.

    Raises:
        MissingJudgeError: no key, no SDK.
        RewardError: no model, a template that cannot be used, a bad scale, price or
            address, a judge named twice, a cache that cannot be used, a budget for a
            model without a known price.
    """
    template, overrides = load_template(config, lang=lang)
    first, *others = members_of(config)
    low, high = template.scale
    notes = [
        f"judge: {first.provider} {first.model} at {find_base_url(first)}, "
        f"template {template.name}, scores {low} to {high}.",
        *(f"panel: {one.provider} {one.model} at {find_base_url(one)}." for one in others),
    ]
    if others:
        notes.append(f"each prompt is scored by one of {1 + len(others)} judges, always the same.")
    if config.votes > 1:
        notes.append(
            f"each response is judged {config.votes} times, at temperature "
            f"{temperature_of(config):g} so that votes can differ; the median counts."
        )
    notes += [*overrides, *_money_notes(config, [first, *others])]
    check_cache(config.cache)
    # keys and SDKs last: a dry run on a machine without them checks the rest all the same
    for one in (first, *others):
        access_of(one, env)
        _check_sdk(PROVIDERS[one.provider])
        notes += _address_notes(one, env)
    return list(dict.fromkeys(notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one judge made of a small question. error: what a run is refused with for it."""

    config: JudgeConfig
    access: Access
    template: Template
    verdict: Verdict
    seconds: float
    notes: list[str]
    error: RewardError | None


def probe_judge(config: JudgeConfig, env: Mapping[str, str], *, lang: str = "en") -> list[str]:
    """Notes after one small call to every judge that was answered, or throttled.

    Raises:
        RewardServiceError: a judge refuses the key or has no money for it, or does not answer.
        RewardError: it refuses the model or the request, or answers without a score.
    """
    probes = probe_members(config, env, lang=lang)
    for probe in probes:
        if probe.error is not None:
            raise probe.error
    return [note for probe in probes for note in probe.notes]


def probe_members(config: JudgeConfig, env: Mapping[str, str], *, lang: str = "en") -> list[Probe]:
    """One small call to every judge, whatever comes of it. `check_judge` has been asked before."""
    template, _ = load_template(config, lang=lang)
    members = members_of(config)

    async def ask() -> list[Probe]:
        probes = (
            _probe(one, access_of(one, env), template, in_panel=number > 0)
            for number, one in enumerate(members)
        )
        return await asyncio.gather(*probes)

    return asyncio.run(ask())


async def _probe(
    config: JudgeConfig, access: Access, template: Template, *, in_panel: bool
) -> Probe:
    """What one judge says of a small question; a fatal fault is kept, too."""
    connection = connect(access)
    asker = Asker(
        connection,
        template,
        limiter=RateLimiter(concurrency=1, rpm=None, tpm=None),
        budget=Budget(max_usd=None, price=None),
        timeout_s=config.timeout_s,
        deadline_s=PROBE_DEADLINE_S,
    )
    user = render(template, values_of(QUESTION, "2", "2", lang=template.lang), nonce="0")
    begun = time.perf_counter()
    try:
        verdict = await asker.verdict(user, tries=PROBE_TRIES)
    except Fault as fault:
        verdict = Verdict(fault=fault)
    finally:
        await connection.close()
    notes, error = _outcome(config, access, verdict, in_panel=in_panel)
    return Probe(
        config=config,
        access=access,
        template=template,
        verdict=verdict,
        seconds=time.perf_counter() - begun,
        notes=notes,
        error=error,
    )


def _outcome(
    config: JudgeConfig, access: Access, verdict: Verdict, *, in_panel: bool
) -> tuple[list[str], RewardError | None]:
    """(notes, or what a run is refused with)."""
    if verdict.fault is None:
        return _model_notes(access.model, verdict.model), None
    if verdict.fault.kind in (Kind.THROTTLE, Kind.BLOCKED):
        note = (
            f"the judge's probe call was not scored ({access.model}: {verdict.fault}); "
            "the run goes on."
        )
        return [note], None
    return [], _probe_error(verdict.fault, config, access, in_panel=in_panel)


def cure(fault: Fault, config: JudgeConfig, *, in_panel: bool = False) -> str:
    """What to type after a fault that no other call can mend. in_panel: not of the first judge."""
    provider = PROVIDERS[config.provider]
    model = "reward.judge.panel" if in_panel else "--rm_model"
    if fault.kind is Kind.KEY:
        others = "".join(f" (or {name})" for name in provider.keys[1:])
        return f"Set a key that it accepts: export {provider.keys[0]}=your_api_key{others}."
    if fault.kind is Kind.MODEL:
        return f"Name a model that this key may use with {model} ({provider.suggestions})."
    if fault.kind is Kind.MONEY:
        return f"Top up the {config.provider} account or raise its quota."
    if fault.kind is Kind.BAD:
        return f"Choose another model with {model}, or another --rm_scoring_prompt."
    if fault.kind is Kind.REQUEST:
        return f"Look at {model}, --rm_base_url and the length of the prompts."
    is_elsewhere = in_panel and config.base_url is None
    return "Look at the network." if is_elsewhere else "Look at the network and --rm_base_url."


def _probe_error(
    fault: Fault, config: JudgeConfig, access: Access, *, in_panel: bool
) -> RewardError:
    kind = RewardServiceError if fault.kind in OUTSIDE else RewardError
    return kind(
        f"the judge ({config.provider} {access.model} at {access.base_url}) failed its probe "
        f"call: {fault}.\n{cure(fault, config, in_panel=in_panel)}"
    )


def _check_sdk(provider: Provider) -> None:
    try:
        found = importlib.util.find_spec(provider.module)
    except ModuleNotFoundError:  # of a parent package
        found = None
    if found is None:
        raise MissingJudgeError(
            f"the {provider.name} judge needs the Python package {provider.module}, which is not "
            "installed.\npip install -e '.[judge]'"
        )


def _money_notes(config: JudgeConfig, members: Sequence[JudgeConfig]) -> list[str]:
    """Raises: RewardError when a budget is set and a judge's price is not known."""
    notes: list[str] = []
    for one in members:
        price = price_of(one)
        if price is None and config.max_cost is not None:
            raise RewardError(_no_price(one, in_panel=one is not members[0]))
        if price is None:
            notes.append(f"no price is known for {one.model}: tokens are counted, dollars are not.")
            continue
        source = "as set" if one.price else f"list price of {price_date()}"
        notes.append(
            f"judge price of {one.model}: ${price.input_usd * 1e6:g} in, "
            f"${price.output_usd * 1e6:g} out per million tokens ({source})."
        )
    if config.max_cost is not None:
        notes.append(f"judging costs at most ${config.max_cost:g} in all.")
    return notes


def _no_price(config: JudgeConfig, *, in_panel: bool) -> str:
    """What to say of a budget for a judge whose price nobody knows."""
    cure = (
        "Choose another model for reward.judge.panel"
        if in_panel
        else "Set reward.judge.price=[input,output] in US dollars per million tokens"
    )
    return (
        f"reward.judge.max_cost={config.max_cost:g}, but no price is known for "
        f"{config.provider} {config.model} (price table of {price_date()}).\n"
        f"{cure}; or leave max_cost out and limit the calls with --rm_rpm or train.max_steps."
    )


def _address_notes(config: JudgeConfig, env: Mapping[str, str]) -> list[str]:
    notes: list[str] = []
    keys = [name for name in PROVIDERS[config.provider].keys if env.get(name, "").strip()]
    if len(keys) > 1:
        notes.append(f"{keys[0]} is used, {keys[1]} is not.")
    used = find_base_url(config)
    for name in PROVIDERS[config.provider].url_variables:
        if (found := env.get(name, "").strip().rstrip("/")) and found != used:
            notes.append(
                f"{name} is set but not used: the judge is called at {used}. To call it at that "
                f'address: --rm_base_url "${name}".'
            )
    url = (config.base_url or "").strip()
    host = url.partition("://")[2]
    if url.startswith("http://") and not host.startswith(LOOPBACK):
        notes.append(f"{url} is not encrypted: the key and all texts can be read on the way.")
    return notes


def _model_notes(asked: str, found: str | None) -> list[str]:
    """A note when another model answered than was asked for; dated versions of it are the same."""
    name = (found or asked).removeprefix("models/")
    short, long = sorted((name, asked), key=len)
    if long.startswith(short) and _RELEASE.fullmatch(long.removeprefix(short)):
        return []
    return [f"the judge asked for is {asked}; {name} answers."]
