"""Find the device a run would use, without torch."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Literal

from rlcli.config.schema import TrainConfig
from rlcli.system.hardware import GIB, ask_driver, total_ram, visible_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A device. memory_gib: of one device; None if unknown. devices: number this process may use.

    host_gib: memory of this machine; None if the device is in another machine.
    """

    kind: Literal["cpu", "cuda", "mps"]
    name: str
    memory_gib: float | None
    devices: int = 1
    host_gib: float | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether the device's memory is the machine's own."""
        return self.kind == "cpu"


def find_machine(train: TrainConfig, *, memory_gib: float | None = None) -> Machine:
    """The device that train.device selects on this machine; `memory_gib` overrides its memory."""
    host = total_ram() / GIB
    wants_gpu = train.device in ("auto", "cuda")
    gpus = visible_gpus(ask_driver()[0], os.environ) if wants_gpu else []
    is_mac = platform.system() == "Darwin" and platform.machine() == "arm64"
    if gpus or train.device == "cuda":
        return Machine(
            kind="cuda",
            name=gpus[0].name if gpus else "a GPU that is not here",
            memory_gib=memory_gib or (gpus[0].memory_gib if gpus else None),
            devices=max(1, len(gpus)),
            host_gib=host if gpus else None,
        )
    if train.device == "mps" or (train.device == "auto" and is_mac):
        return Machine(kind="mps", name="Apple GPU", memory_gib=memory_gib or host, host_gib=host)
    return Machine(kind="cpu", name="CPU", memory_gib=memory_gib or host, host_gib=host)
