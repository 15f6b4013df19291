"""The processes that train one model together: what each computes, and what they add up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from rlcli.engines.packing import RowIndex

T = TypeVar("T")


class Ranks:
    """This process among `size`; alone it talks to nobody.

    Every rank calls the same methods in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        """Whether what all ranks know alike is counted here."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            if values.is_cuda:  # a GPU that hangs keeps its own rank from getting here: see crew
                torch.cuda.current_stream(values.device).synchronize()
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value)
        return out

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return max(self.gather(number))

    @contextmanager
    def reading(self, file: Path) -> Iterator[Mapping[str, Tensor]]:
        """Rank 0's safetensors file on every rank, each tensor when it is asked for.

        All ranks ask for the same ones in the same order; only rank 0 has to see the file.
        """
        with safe_open(str(file), "pt") if self.is_first else nullcontext() as source:
            yield _Tensors(source, is_alone=self.size == 1)

    def equalize(self, model: nn.Module) -> None:
        """Rank 0's weights on every rank: what they loaded or drew may differ."""
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

    def shares(self, rows: Sequence[int], index: RowIndex) -> list[list[int]]:
        """The rows of each rank, in order: groups whole, about as many tokens for each.

        Every rank finds the same shares: nothing is sent.
        """
        if self.size == 1:
            return [list(rows)]
        groups: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            groups[index.group[row]].append(row)
        tokens = {
            group: index.prompt_lengths[group] + sum(index.lengths[row] for row in members)
            for group, members in groups.items()
        }
        shares = spread(list(groups), [tokens[group] for group in groups], self.size)
        place = {group: rank for rank, share in enumerate(shares) for group in share}
        return [
            [row for row in rows if place[index.group[row]] == rank] for rank in range(self.size)
        ]


class _Tensors(Mapping[str, Tensor]):
    """The tensors of an open file, and of rank 0's where the source is None."""

    def __init__(self, source: Any, *, is_alone: bool) -> None:
        self._source, self._is_alone = source, is_alone
        known: list[Any] = [None if source is None else list(source.keys())]
        self._names = set[str]((known if is_alone else from_first(known))[0])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if self._is_alone:
            return self._source.get_tensor(name)
        here = None if self._source is None else self._source.get_tensor(name)
        shape, dtype = from_first([None, None] if here is None else [here.shape, here.dtype])
        tensor = torch.empty(shape, dtype=dtype) if here is None else here
        dist.broadcast(tensor, src=0)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def collectives_begun() -> int:
    """How many this process has begun with all other ranks, those of DeepSpeed included.

    Every rank begins the same ones: who has begun fewer is waited for.
    """
    if not dist.is_initialized():
        return 0
    size = dist.get_world_size()
    groups = [group for group in list(dist.distributed_c10d._world.pg_map) if group.size() == size]
    backends: list[Any] = [
        group._get_backend(device) for group in groups for device in group._device_types
    ]
    return sum(backend._get_sequence_number_for_group() for backend in backends)


def from_first(values: list[Any]) -> list[Any]:
    """Rank 0's values, on every rank."""
    dist.broadcast_object_list(values, src=0)
    return values


def spread(items: Sequence[T], costs: Sequence[int], size: int) -> list[list[T]]:
    """Items in `size` shares of about the same cost: the dearest first, to whoever has least."""
    loads, shares = [0] * size, [list[int]() for _ in range(size)]
    for place in sorted(range(len(items)), key=lambda place: -costs[place]):
        rank = min(range(size), key=lambda rank: (loads[rank], rank))
        loads[rank] += costs[place]
        shares[rank].append(place)
    return [[items[place] for place in sorted(share)] for share in shares]


ALONE = Ranks()
