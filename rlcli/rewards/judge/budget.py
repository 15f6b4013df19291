"""What judging costs: a dated price table, and a budget that no call can overrun."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlcli.config.rewards import JudgeConfig
from rlcli.errors import RewardError
from rlcli.rewards.judge.client import Reply, Request
from rlcli.rewards.judge.providers import find_base_url, find_model

OVERHEAD_TOKENS = 100
"""Tokens a provider adds to what it is sent: roles, the schema's own form."""
INTERNATIONAL = "dashscope-intl"
_VERSION = re.compile(r"(?:-(?:latest|preview|\d{4}-\d{2}-\d{2}|\d{6,8}|\d{3}|\d{2}-\d{2,4}))+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars per token."""

    input_usd: float
    output_usd: float

    def cost_usd(self, input_tokens: int, output_tokens: int) -> float:
        """Dollars for so many tokens."""
        return input_tokens * self.input_usd + output_tokens * self.output_usd


class BudgetSpent(Exception):
    """What is left does not pay for one more call."""


def price_of(config: JudgeConfig) -> Price | None:
    """What a judge asks: reward.judge.price where that is set, else the table's list price.

    Raises:
        RewardError: reward.judge.price is not two numbers, or no model is named.
    """
    if not config.price:
        return find_price(config.provider, find_model(config), base_url=find_base_url(config))
    if len(config.price) != 2:
        shown = ", ".join(f"{amount:g}" for amount in config.price)
        raise RewardError(
            f"reward.judge.price=[{shown}]: expected two numbers, [input, output] in US dollars "
            "per million tokens.\nFor instance reward.judge.price=[0.15,0.60]"
        )
    into, out = config.price
    return Price(input_usd=into / 1e6, output_usd=out / 1e6)


def find_price(provider: str, model: str, *, base_url: str = "") -> Price | None:
    """The list price of a model, a dated version of it too; None when the table has none.

    base_url: DashScope's two sites have prices of their own; any other server is taken to ask
    what the provider asks.
    """
    site = INTERNATIONAL if provider == "dashscope" and INTERNATIONAL in base_url else provider
    prices = _table()[site]
    name = model.lower()
    found = prices.get(name) or prices.get(_VERSION.sub("", name))
    return found and Price(input_usd=found[0] / 1e6, output_usd=found[1] / 1e6)


def price_date() -> str:
    """The day the table is of."""
    return str(_table()["date"])


@cache
def _table() -> Mapping[str, Any]:
    path = Path(__file__).with_name("prices.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def most_tokens(request: Request) -> tuple[int, int]:
    """(input, output) tokens of a call, neither of which can be exceeded.

    A byte-level tokenizer makes at most one token of a byte.
    """
    texts = (request.system, request.user, str(request.schema))
    return sum(len(text.encode()) for text in texts) + OVERHEAD_TOKENS, request.max_tokens


class Ledger:
    """Dollars in a file of one line, written in place: a killed process forgets none of them."""

    def __init__(self, path: Path) -> None:
        """Raises: OSError."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def read(self) -> float:
        """What was written last, by whichever process; 0 in a new file."""
        try:
            amount = float(os.pread(self._fd, 64, 0).partition(b"\n")[0])
        except ValueError:
            return 0.0
        return amount if 0.0 <= amount < math.inf else 0.0

    def write(self, amount: float) -> None:
        """Some 2 us: the page is not waited for, so a power cut may take the last moments."""
        with suppress(OSError):  # a full disk ends the run where it saves, with a better message
            os.pwrite(self._fd, f"{amount:24.12f}\n".encode(), 0)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)


@dataclass(slots=True)
class _Purse:
    """The money of a run's judges, all of them together."""

    max_usd: float | None
    ledger: Ledger | None
    spent_usd: float = 0.0
    reserved_usd: float = 0.0
    in_flight: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Budget:
    """Dollars spent and held back, over calls in flight. Used within one event loop.

    max_usd: None for no limit. price: None counts tokens only. ledger: where the dollars outlive
    the process, calls in flight at the most they can cost.
    """

    def __init__(
        self, *, max_usd: float | None, price: Price | None, ledger: Ledger | None = None
    ) -> None:
        self._purse = _Purse(max_usd, ledger, ledger.read() if ledger else 0.0)
        self._price = price

    def priced(self, price: Price | None) -> Budget:
        """The same money, for calls to a judge that asks another price."""
        other = Budget(max_usd=None, price=price)
        other._purse = self._purse
        return other

    @property
    def spent_usd(self) -> float:
        """Dollars spent, those of the runs that were resumed included."""
        return self._purse.spent_usd

    def carry(self, spent_usd: float) -> None:
        """Count what an earlier run says it spent, where the ledger does not know of it."""
        self._purse.spent_usd = max(self._purse.spent_usd, spent_usd)

    @property
    def committed_usd(self) -> float:
        """Dollars spent, and the most that calls in flight can cost."""
        return self._purse.spent_usd + self._purse.reserved_usd

    @property
    def left_usd(self) -> float | None:
        """Dollars that are neither spent nor held back; None without a limit."""
        limit = self._purse.max_usd
        return None if limit is None else max(0.0, limit - self.committed_usd)

    async def reserve(self, request: Request) -> float:
        """Dollars held back for a call, at the most it can cost; waits for calls in flight.

        Raises:
            BudgetSpent: nothing is in flight, and what is left is not enough.
        """
        if self._price is None:
            return 0.0
        purse = self._purse
        amount = self._price.cost_usd(*most_tokens(request))
        while purse.max_usd is not None:
            if self.committed_usd + amount <= purse.max_usd:
                break
            if purse.in_flight == 0:
                raise BudgetSpent
            purse.settled.clear()
            await purse.settled.wait()
        purse.reserved_usd += amount
        purse.in_flight += 1
        self._write_down()
        return amount

    def settle(self, reserved_usd: float, reply: Reply | None, *, is_billed: bool) -> float:
        """Dollars the call cost: by its counts; without any, all that was held back, if billed."""
        if self._price is None:
            return 0.0
        purse = self._purse
        purse.in_flight -= 1
        purse.reserved_usd = purse.reserved_usd - reserved_usd if purse.in_flight else 0.0
        cost = reserved_usd if is_billed else 0.0
        if reply and None not in (reply.input_tokens, reply.output_tokens):
            cost = self._price.cost_usd(reply.input_tokens or 0, reply.output_tokens or 0)
        purse.spent_usd += cost
        self._write_down()
        purse.settled.set()
        return cost

    def _write_down(self) -> None:
        if self._purse.ledger is not None:
            self._purse.ledger.write(self.committed_usd)
