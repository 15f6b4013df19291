"""What every rank gets alike from rank 0: tensors as they are, all else in one frame.

They go through torch.distributed, where those who have it pass it on: rank 0 sends it log2(size)
times, and nobody copies it.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlcli.engines.ranks import from_first


@dataclass(frozen=True, slots=True)
class Parcel:
    """A value whose tensors have been taken out. They lie in this machine's memory."""

    frame: bytes
    tensors: list[Tensor]


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj.detach().cpu().contiguous())
        return len(self.tensors) - 1


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        return self._tensors[pid]


def pack(value: Any) -> Parcel:
    """`value`, ready to be sent to all."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    return Parcel(file.getvalue(), packer.tensors)


def send(parcel: Parcel) -> None:
    """To all other ranks, which call `receive`. Raises: RuntimeError where one of them is gone."""
    from_first([parcel.frame, [(tensor.shape, tensor.dtype) for tensor in parcel.tensors]])
    for tensor in parcel.tensors:
        _broadcast(tensor)


def receive() -> Any:
    """What rank 0 sends. Raises: RuntimeError where a rank on the way is gone."""
    frame, known = from_first([None, None])
    tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in known]
    for tensor in tensors:
        _broadcast(tensor)
    return _Unpacker(io.BytesIO(frame), tensors).load()


def _broadcast(tensor: Tensor) -> None:
    if tensor.numel():
        dist.broadcast(tensor.view(-1).view(torch.uint8), src=0)
