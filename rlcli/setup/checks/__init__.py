"""Checks of a resolved configuration before anything is loaded, without torch."""

from __future__ import annotations

from rlcli.config.resolved import Resolved
from rlcli.setup.checks.algorithm import check_algorithm
from rlcli.setup.checks.batches import (
    Batching,
    batch_arithmetic,
    batching,
    resolve_batches,
    step_line,
)
from rlcli.setup.checks.engines import (
    check_engines,
    resolve_address,
    resolve_async,
    resolve_sharding,
)
from rlcli.setup.checks.environments import settle_environment
from rlcli.setup.checks.rewards import resolve_reward
from rlcli.setup.checks.sampler import resolve_sampler
from rlcli.setup.checks.unused_settings import unused_notes
from rlcli.setup.checks.warnings import advice

__all__ = [
    "Batching",
    "batch_arithmetic",
    "batching",
    "check",
    "check_engines",
    "resolve_sampler",
    "step_line",
]


def check(resolved: Resolved) -> Resolved:
    """`resolved` with what had to give adjusted, and a note on everything adjusted or not used.

    Raises:
        ConfigError: a name that is not in the tables, something the algorithm needs and the run
            does not have, or settings that contradict each other.
    """
    resolved = settle_environment(resolved)
    resolved = resolve_sharding(resolve_reward(resolve_async(resolve_address(resolved))))
    resolved = resolve_batches(check_algorithm(resolved))
    return resolved.with_notes(*unused_notes(resolved), *advice(resolved))
