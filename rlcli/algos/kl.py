"""Per-token KL(policy, reference) estimates, and the KL coefficient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, assert_never

from torch import Tensor

if TYPE_CHECKING:
    from rlcli.config.schema import KLType

MAX_LOG_RATIO = 20.0
MAX_K3 = 10.0


def kl(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, kind: KLType) -> Tensor:
    """KL estimate per token. A kind ending in `+` has the value of its name and k2's gradient.

    The mean of k1 and k3 is the KL. The mean of their gradients is not the KL's gradient, but the
    mean of k2's is. k3 clips log-ratios to +-20 and is at most 10.
    Source: http://joschu.net/blog/kl-approx.html.
    """
    gap_BT = logprobs_BT - ref_logprobs_BT
    match kind:
        case "k1" | "abs" | "k2" | "k3":
            return _estimate(gap_BT, kind)
        case "k1+" | "abs+" | "k2+" | "k3+":
            k2_BT = _estimate(gap_BT, "k2")
            return k2_BT - k2_BT.detach() + _estimate(gap_BT, kind[:-1]).detach()
        case _:
            assert_never(kind)


def _estimate(gap_BT: Tensor, kind: str) -> Tensor:
    if kind == "k1":
        return gap_BT
    if kind == "abs":
        return gap_BT.abs()
    if kind == "k2":
        return 0.5 * gap_BT.square()
    back_BT = (-gap_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (back_BT.exp() - back_BT - 1).clamp(-MAX_K3, MAX_K3)


class KLController(Protocol):
    """Controls the coefficient of a KL term over the steps."""

    @property
    def coef(self) -> float:
        """Current coefficient."""
        ...

    def update(self, kl: float, num_rollouts: int) -> None:
        """Update the coefficient from the mean KL of a step's rollouts."""
        ...

    def state(self) -> dict[str, float]:
        """State for the checkpoint."""
        ...

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore the result of `state`."""
        ...


class FixedKL:
    """A constant coefficient."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, num_rollouts: int) -> None:
        """Does nothing."""

    def state(self) -> dict[str, float]:
        """Empty: after a resume, the coefficient is that of the current settings."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Does nothing."""


class AdaptiveKL:
    """A coefficient that grows while the KL is above target and shrinks while it is below.

    target: KL per token. horizon: rollouts. Source: arXiv 1909.08593.
    """

    def __init__(self, coef: float, *, target: float, horizon: int) -> None:
        self.coef = coef
        self._target = target
        self._horizon = horizon

    def update(self, kl: float, num_rollouts: int) -> None:
        """Scale by 1 + clip(kl / target - 1, +-0.2) * num_rollouts / horizon; not by a NaN."""
        if math.isnan(kl):
            return
        error = min(max(kl / self._target - 1, -0.2), 0.2)
        self.coef *= 1 + error * num_rollouts / self._horizon

    def state(self) -> dict[str, float]:
        """The coefficient."""
        return {"coef": self.coef}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore the coefficient, if the saved run had an adaptive one."""
        self.coef = state.get("coef", self.coef)
