"""What can go wrong with a call, and what each fault asks for."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any


class Kind(Enum):
    """What a fault asks for. The value is the word that users see."""

    KEY = "the key is refused"
    MODEL = "the model is refused"
    MONEY = "the account has no money or quota"
    THROTTLE = "rate limit"
    TRANSIENT = "no answer"
    BAD = "no score in the reply"
    BLOCKED = "blocked by a content filter"
    REQUEST = "request refused"


FATAL = frozenset({Kind.KEY, Kind.MODEL, Kind.MONEY})
"""No later call can fare better."""

OUTAGES = frozenset({Kind.THROTTLE, Kind.TRANSIENT})
"""The judge service did not answer."""


class Fault(Exception):
    """One call without a verdict. Its text may be shown: it is cut short and holds no key.

    is_billed: the provider may have worked, so the call counts at its full estimate.
    retry_after_s: time until the next call may start. status: HTTP status, 0 without a response.
    """

    def __init__(
        self,
        kind: Kind,
        text: str,
        *,
        retry_after_s: float = 0.0,
        is_billed: bool = False,
        was_cut: bool = False,
        status: int = 0,
    ) -> None:
        super().__init__(f"{kind.value}: {text}" if text else kind.value)
        self.kind = kind
        self.text = text
        self.retry_after_s = retry_after_s
        self.is_billed = is_billed
        self.was_cut = was_cut
        self.status = status


class Outage(Fault):
    """A call that was not made: it waited for the judge until its tries or its time were over."""


NO_MONEY = frozenset({"arrearage", "billing_not_active", "allocationquota.freetieronly"})
NO_KEY = frozenset({"api_key_invalid", "invalid_api_key", "invalidapikey", "authentication_error"})
NO_MODEL = frozenset({"model_not_found", "modelnotfound"})
FILTERED = frozenset(
    {"datainspectionfailed", "data_inspection_failed", "content_filter", "content_policy_violation"}
)
THROTTLES = (429, 529)


def from_status(
    provider: str, status: int, body: Any, headers: Mapping[str, str], *, key: str
) -> Fault:
    """The fault that an HTTP error answer stands for.

    Only fields made for machines are trusted: a message may quote the response that was judged.
    """
    codes = {code.casefold() for code in _fields(body, ("code", "type", "status", "reason"))}
    message = next(_fields(body, ("message", "detail")), "")
    text = f"{status} {short(message, key)}".strip()
    wait_s = retry_after_s(headers, body)
    kind = _kind(provider, status, codes, message.casefold())
    return Fault(kind, text, retry_after_s=wait_s, status=status)


def from_answer(provider: str, error: Any, *, key: str) -> Fault:
    """The fault of an SDK's APIStatusError: openai's and anthropic's have the same fields."""
    return from_status(provider, error.status_code, error.body, error.response.headers, key=key)


def _kind(provider: str, status: int, codes: set[str], message: str) -> Kind:
    if status >= 500 and status not in THROTTLES:
        return Kind.TRANSIENT
    # DashScope says insufficient_quota for a rate limit, OpenAI for an empty account.
    if codes & NO_MONEY or (provider == "openai" and "insufficient_quota" in codes):
        return Kind.MONEY
    if status == 402 or (provider == "claude" and "credit balance is too low" in message):
        return Kind.MONEY
    if status in THROTTLES:
        return Kind.THROTTLE
    if codes & FILTERED or (provider == "claude" and "content filtering" in message):
        return Kind.BLOCKED
    if codes & NO_MODEL or status == 404:
        return Kind.MODEL
    if codes & NO_KEY or status in (401, 403):
        return Kind.KEY
    return Kind.TRANSIENT if status in (408, 409, 425) or status < 400 else Kind.REQUEST


def no_answer(error: BaseException, *, key: str) -> Fault:
    """The fault of a connection that failed or an answer that cannot be read."""
    cause = error.__cause__ or error
    name = type(cause).__name__
    detail = short(str(cause), key)
    text = f"{name}: {detail}" if detail else name
    return Fault(Kind.TRANSIENT, text, is_billed="Connect" not in name)


def retry_after_s(headers: Mapping[str, str], body: Any) -> float:
    """Seconds the provider asks to wait: Retry-After in its three forms, or Google's retryDelay."""
    waits = [0.0]
    if (value := headers.get("retry-after-ms")) is not None:
        waits.append(_seconds(value) / 1000)
    if (value := headers.get("retry-after")) is not None:
        waits.append(_seconds(value) or _until(value, sent=headers.get("date")))
    waits += [_seconds(delay.removesuffix("s")) for delay in _fields(body, ("retryDelay",))]
    return max(waits)


def short(text: str, key: str) -> str:
    """One line of at most 200 characters, without the key."""
    line = " ".join(re.sub(r"<[^>]*>", " ", text.replace(key, "***") if key else text).split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def _seconds(text: str) -> float:
    """Seconds in "1.5"; 0 for anything else."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 < value < 1e9 else 0.0


def _until(date: str, *, sent: str | None) -> float:
    """Seconds to an HTTP date from `sent`, the server's date header; 0 for anything else."""
    until = _timestamp(date)
    start = _timestamp(sent or "") or time.time()
    return max(0.0, until - start) if until else 0.0


def _timestamp(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _fields(body: Any, names: tuple[str, ...], depth: int = 0) -> Iterator[str]:
    """Texts under these names, outer ones first, in an error body of a few levels."""
    if depth > 5:
        return
    if isinstance(body, Mapping):
        for name in names:
            if isinstance(value := body.get(name), str):
                yield value
        for value in body.values():
            yield from _fields(value, names, depth + 1)
    elif isinstance(body, list):
        for value in body[:20]:
            yield from _fields(value, names, depth + 1)
    elif isinstance(body, str) and depth == 0 and "message" in names:
        yield body
