"""Communication between the processes that train one model together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
P = ParamSpec("P")


class Ranks:
    """This process among `size`; alone it sends nothing.

    Every rank calls the same methods in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which acts once for all ranks."""
        return self.rank == 0

    def doing(self, name: str) -> AbstractContextManager[None]:
        """Inside, this name is shown for what this rank does while others wait for it."""
        return nullcontext()

    def explained(self) -> AbstractContextManager[None]:
        """Inside, an error that another rank caused is replaced by one that names that rank."""
        return nullcontext()

    def all_reduce(self, values: Tensor, /, *, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """The sum over ranks, or another reduction `op`, in place."""
        if self.size > 1:
            if values.is_cuda:  # if a GPU hangs, its rank begins no collective: see crew/watch
                torch.cuda.current_stream(values.device).synchronize()
            dist.all_reduce(values, op)
        return values

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value)
        return out

    def gather_tensors(self, values: Tensor, /) -> tuple[list[Tensor], int]:
        """(every rank's tensor, of any length, in the order of ranks; this rank)."""
        if self.size == 1:
            return [values], 0
        return [found.to(values.device) for found in self.gather(values.cpu())], self.rank

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """On rank 0 every rank's bytes, in the order of ranks; [] elsewhere."""
        return [data]

    def first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return value if self.size == 1 else broadcast_from_rank0([value])[0]

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return max(self.gather(number))

    def broadcast_parameters(self, model: nn.Module) -> None:
        """Copy rank 0's weights to every rank: loaded or random ones may differ."""
        if self.size > 1:
            for parameter in model.parameters():
                dist.broadcast(parameter.data, src=0)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up the gradients. A parameter that has none on any rank keeps none."""
        if self.size == 1:
            return
        given = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
        wanted = self.all_reduce(given.int()).tolist()
        waiting = []
        for parameter, is_wanted in zip(parameters, wanted, strict=True):
            if is_wanted:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                waiting.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in waiting:
            if work is not None:
                work.wait()


def collectives_begun() -> int:
    """Collectives that this process has begun with all other ranks, those of DeepSpeed included.

    Every rank begins the same ones, so a rank that has begun fewer keeps the others waiting.
    """
    if not dist.is_initialized():
        return 0
    size = dist.get_world_size()
    groups = [group for group in list(dist.distributed_c10d._world.pg_map) if group.size() == size]
    backends: list[Any] = [
        group._get_backend(device) for group in groups for device in group._device_types
    ]
    return sum(backend._get_sequence_number_for_group() for backend in backends)


def broadcast_from_rank0(values: list[Any]) -> list[Any]:
    """Rank 0's values, on every rank."""
    dist.broadcast_object_list(values, src=0)
    return values


class _HasRanks(Protocol):
    ranks: Ranks


Owner = TypeVar("Owner", bound=_HasRanks)


def named_for_others(
    method: Callable[Concatenate[Owner, P], T],
) -> Callable[Concatenate[Owner, P], T]:
    """A method whose name is shown while other ranks wait for this one."""

    @wraps(method)
    def call(owner: Owner, /, *args: P.args, **more: P.kwargs) -> T:
        with owner.ranks.doing(method.__name__):
            return method(owner, *args, **more)

    return call


def partition(costs: Sequence[int], size: int, *, per_round: int) -> list[list[int]]:
    """Item numbers in `size` shares, ascending; `costs` has one number per item.

    Of every `per_round` consecutive items, the most expensive go first, each to the share with the
    fewest items and then the lowest cost. Shares differ by one item at most.
    """
    loads, shares = [(0, 0)] * size, [list[int]() for _ in range(size)]
    for start in range(0, len(costs), per_round):
        some = range(start, min(start + per_round, len(costs)))
        for item in sorted(some, key=lambda item: -costs[item]):
            owner = min(range(size), key=lambda rank: (loads[rank], rank))
            count, cost = loads[owner]
            loads[owner] = count + 1, cost + costs[item]
            shares[owner].append(item)
    return [sorted(share) for share in shares]


ALONE = Ranks()
