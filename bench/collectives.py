"""Bytes that a process gives to torch.distributed, and seconds, by part of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

GIVEN = {
    "all_reduce": lambda args, kwargs: _size(args, kwargs, 0, "tensor"),
    "reduce": lambda args, kwargs: _size(args, kwargs, 0, "tensor"),
    "broadcast": lambda args, kwargs: _size(args, kwargs, 0, "tensor"),
    "all_gather": lambda args, kwargs: _size(args, kwargs, 1, "tensor"),
    "all_gather_into_tensor": lambda args, kwargs: _size(args, kwargs, 1, "input_tensor"),
    "reduce_scatter": lambda args, kwargs: _size(args, kwargs, 1, "input_list"),
    "reduce_scatter_tensor": lambda args, kwargs: _size(args, kwargs, 1, "input"),
    "all_to_all_single": lambda args, kwargs: _size(args, kwargs, 1, "input"),
    "gather": lambda args, kwargs: _size(args, kwargs, 0, "tensor"),
}
"""Bytes that a rank puts into a collective."""
SENT: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda w: 2 * (w - 1) / w,
    "reduce": lambda w: (w - 1) / w,
    "broadcast": lambda w: (w - 1) / w,
    "all_gather": lambda w: w - 1,
    "all_gather_into_tensor": lambda w: w - 1,
    "reduce_scatter": lambda w: (w - 1) / w,
    "reduce_scatter_tensor": lambda w: (w - 1) / w,
    "all_to_all_single": lambda w: (w - 1) / w,
    "gather": lambda w: (w - 1) / w,
}
"""What the mean rank sends for a byte that the mean rank gives, in rings of w."""


def _size(args: Any, kwargs: Any, place: int, name: str) -> int:
    value = args[place] if len(args) > place else kwargs[name]
    tensors = value if isinstance(value, list | tuple) else [value]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(slots=True)
class Count:
    """One process, step by step and by phase: wall and CPU seconds, bytes by `phase operation`."""

    seconds: list[dict[str, float]] = field(default_factory=list)
    cpu_s: list[dict[str, float]] = field(default_factory=list)
    given: list[dict[str, int]] = field(default_factory=list)
    wire: list[dict[str, int]] = field(default_factory=list)
    _phase: str = ""
    _busy: bool = False

    @contextmanager
    def phase(self, name: str) -> Any:
        """A part of a step; sampling begins one. Parts inside a part are not looked at."""
        if self._phase:
            yield
            return
        if name == "sampling":
            for values in (self.seconds, self.cpu_s, self.given, self.wire):
                values.append({})
        self._phase, sent = name, loopback_bytes()
        begun, cpu_s = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self._phase = ""
            if self.seconds:
                _add(self.seconds[-1], name, time.perf_counter() - begun)
                _add(self.cpu_s[-1], name, time.process_time() - cpu_s)
                _add(self.wire[-1], name, loopback_bytes() - sent)

    def operation(self, name: str, size: int) -> None:
        """Bytes given to an operation."""
        if self.given:
            _add(self.given[-1], f"{self._phase} {name}", size)

    def wrap_phase(self, owner: Any, method: str, name: str) -> None:
        """Time a method of a class."""
        inner = vars(owner)[method]

        @wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)

    def wrap_operation(self, owner: Any, function: str, size: Callable[[Any, Any], int]) -> None:
        """Count a function of a module; one that another calls is not counted again."""
        inner = getattr(owner, function)

        @wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return inner(*args, **kwargs)
            self._busy = True
            try:
                self.operation(function, size(args, kwargs))
                return inner(*args, **kwargs)
            finally:
                self._busy = False

        setattr(owner, function, counted)

    def wrap_backward(self, owner: Any) -> None:
        """Count the micro-batches of an optimizer."""
        inner = owner.backward

        @wraps(inner)
        def backward(*args: Any) -> None:
            _add(self.given[-1], "micro-batches", 1)
            inner(*args)

        owner.backward = backward


def _add(values: dict[str, Any], name: str, value: Any) -> None:
    values[name] = values.get(name, 0) + value


def loopback_bytes() -> int:
    """Bytes that this machine has sent to itself."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def watch_process(count: Count) -> None:
    """Have `count` see what this process does from here on."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    from rlcli.engines.deepspeed_engine import DeepSpeedEngine, ShardedUpdater
    from rlcli.engines.forward_passes import ForwardPasses
    from rlcli.engines.optimizer import Updater
    from rlcli.engines.torch_engine import TorchEngine
    from rlcli.rollout.native import NativeSampler

    for name, size in GIVEN.items():
        count.wrap_operation(distributed_c10d, name, size)
        setattr(dist, name, getattr(distributed_c10d, name))
    for owner in (Updater, ShardedUpdater):
        count.wrap_backward(owner)
    names = {"generate": "sampling", "load_weights": "weights", "annotate": "passes"}
    names |= {"update": "update", "state": "checkpoint", "save_model": "model"}
    for owner in (NativeSampler, ForwardPasses, TorchEngine, DeepSpeedEngine):
        for method, phase in names.items():
            if method in vars(owner):
                count.wrap_phase(owner, method, phase)
