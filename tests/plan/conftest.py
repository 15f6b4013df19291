"""A resolved configuration in one call."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rlcli.config.resolved import Resolved
from rlcli.config.resolver import resolve
from rlcli.setup.checks import check

Resolve = Callable[..., Resolved]


@pytest.fixture
def settings() -> Resolve:
    """settings("a=b", ..., algo="grpo"): checked settings."""

    def make(*overrides: str, algo: str = "grpo") -> Resolved:
        resolved = resolve(flags={}, overrides=list(overrides), files=[], env={}, algo=algo)
        return check(resolved)

    return make
