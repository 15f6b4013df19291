"""Reads a checkpoint on rank 0 for all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlcli.distributed.collectives import Ranks, broadcast_from_rank0
from rlcli.engines.sharded_checkpoint import StateReader


@contextmanager
def read_on_all(ranks: Ranks, folder: Path) -> Iterator[Mapping[str, Tensor]]:
    """Tensors that rank 0 reads from a checkpoint, on every rank; each is sent on access.

    All ranks access the same tensors in the same order; only rank 0 needs the folder.
    """
    with StateReader(folder) if ranks.is_first else nullcontext() as source:
        yield _Tensors(source, is_alone=ranks.size == 1)


class _Tensors(Mapping[str, Tensor]):
    """The tensors of an open checkpoint; if `source` is None, of that of rank 0."""

    def __init__(self, source: Any, *, is_alone: bool) -> None:
        self._source, self._is_alone = source, is_alone
        known: list[Any] = [None if source is None else list(source.keys())]
        self._names = set[str]((known if is_alone else broadcast_from_rank0(known))[0])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if self._is_alone:
            return self._source.get_tensor(name)
        here = None if self._source is None else self._source.get_tensor(name)
        shape, dtype = broadcast_from_rank0(
            [None, None] if here is None else [here.shape, here.dtype]
        )
        tensor = torch.empty(shape, dtype=dtype) if here is None else here
        dist.broadcast(tensor, src=0)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
