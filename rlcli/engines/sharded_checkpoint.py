"""An engine's state in files: a share of each rank and an index, or whole in one file a model.

A share is a safetensors file with a rank's rows of every tensor. The index lists, for each tensor,
its dtype, its shape, and the first row and the number of rows in each file, and for each file its
SHA-256. A state of either form is read by any engine on any number of ranks.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rlcli.run_dir.checkpoint import COPY_ROOM, SHARES_INDEX
from rlcli.system.hardware import free_ram

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
WHOLE_FILES = ("policy.safetensors", "critic.safetensors")
SILENT_S = 60.0
"""How long no share of another rank may grow while one is missing."""
POLL_S = 0.05


class ShareState:
    """A rank's share of an engine's state.

    places: (first row, rows of the whole tensor) by name; a tensor without one is stored as it is.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        places: Mapping[str, tuple[int, int]],
        *,
        rank: int,
        size: int,
        is_copy: bool = False,
    ) -> None:
        self._tensors, self._places = dict(tensors), places
        self.rank, self._size, self._is_copy = rank, size, is_copy

    @property
    def num_bytes(self) -> int:
        """Of the shares of all ranks on this machine."""
        own = sum(tensor.nbytes for tensor in self._tensors.values())
        return own * int(os.environ.get("LOCAL_WORLD_SIZE", self._size))

    def copied(self) -> ShareState:
        """The same values in memory of the host that training does not touch."""
        if self._is_copy:
            return self
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in self._tensors.items()}
        return ShareState(tensors, self._places, rank=self.rank, size=self._size, is_copy=True)

    def save(self, folder: Path) -> dict[str, str]:
        """Write this rank's share; rank 0 then waits for the others and writes the index.

        Returns: the SHA-256 of every share by file name, on rank 0.
        Raises: OSError if a share cannot be written, or one of another rank does not appear.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / share_name(self.rank, self._size)
        try:
            entry = self._write(file)
            _replace(file.with_suffix(".json"), json.dumps(entry))
        except OSError as error:
            with suppress(OSError):
                _replace(file.with_suffix(".failed"), json.dumps([error.errno, str(error)]))
            raise
        return _join_shares(folder, self._size) if self.rank == 0 else {}

    def _write(self, file: Path) -> dict[str, Any]:
        """The share's entry in the index. Each tensor is released once it is written."""
        header: dict[str, Any] = {}
        offset = 0
        for name, tensor in self._tensors.items():
            end = offset + tensor.nbytes
            dtype, shape = DTYPES[tensor.dtype], list(tensor.shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        digest = hashlib.sha256()
        with file.with_suffix(".part").open("wb") as opened:
            for data in self._contents(len(text).to_bytes(8, "little") + text):
                digest.update(data)
                opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(file.with_suffix(".part"), file)
        tensors = {name: self._place(name, known) for name, known in header.items()}
        return {"sha256": digest.hexdigest(), "tensors": tensors}

    def _contents(self, head: bytes) -> Iterator[Any]:
        yield head
        for name in list(self._tensors):
            tensor = self._tensors.pop(name).detach().to("cpu").contiguous()
            if tensor.numel():
                yield tensor.reshape(-1).view(torch.uint8).numpy().data

    def _place(self, name: str, known: Mapping[str, Any]) -> dict[str, Any]:
        own = known["shape"]
        start, rows = self._places.get(name, (0, own[0] if own else 1))
        shape = [rows, *own[1:]] if own else own
        return {"dtype": known["dtype"], "shape": shape, "start": start, "rows": (own or [1])[0]}


def share_name(rank: int, size: int) -> str:
    """File name of a rank's share."""
    return f"share-{rank + 1:05d}-of-{size:05d}.safetensors"


def _replace(path: Path, text: str) -> None:
    """Write a file that others see only when it is complete."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(text)
    os.replace(scratch, path)


def _join_shares(folder: Path, size: int) -> dict[str, str]:
    """Wait for every share and write the index; the SHA-256 of the shares by file name."""
    files = [folder / share_name(rank, size) for rank in range(size)]
    seen, since = -1, time.monotonic()
    while missing := [f for f in files if not f.with_suffix(".json").is_file()]:
        for failed in (f.with_suffix(".failed") for f in missing):
            if failed.is_file():
                raise OSError(*json.loads(failed.read_text()))
        written = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
        if written != seen:
            seen, since = written, time.monotonic()
        elif time.monotonic() - since > SILENT_S:
            raise OSError(
                errno.EIO,
                f"{missing[0].name} has not appeared in {folder} for {SILENT_S:g} s; every node "
                "must see the run directory",
            )
        time.sleep(POLL_S)
    index: dict[str, Any] = {"files": {}, "tensors": {}}
    for file in files:
        entry = json.loads(file.with_suffix(".json").read_text())
        index["files"][file.name] = {"sha256": entry["sha256"], "bytes": file.stat().st_size}
        for name, place in entry["tensors"].items():
            tensor = {"dtype": place["dtype"], "shape": place["shape"], "parts": []}
            parts = index["tensors"].setdefault(name, tensor)["parts"]
            if place["rows"]:
                parts.append({"file": file.name, "start": place["start"], "rows": place["rows"]})
    (folder / SHARES_INDEX).write_text(json.dumps(index, indent=1))
    for file in files:
        file.with_suffix(".json").unlink()
    return {name: file["sha256"] for name, file in index["files"].items()}


class ShareWriter:
    """Writes a rank's shares one after the other, while training goes on if a copy fits."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="share")
        self._writing: Future[dict[str, str]] | None = None

    def write(self, state: ShareState, folder: Path) -> None:
        """Begin a share. Rank 0 learns of an error by the file that takes its place."""
        self.wait()
        if free_ram() >= COPY_ROOM * state.num_bytes:
            self._writing = self._thread.submit(state.copied().save, folder)
        else:
            with suppress(OSError):
                state.save(folder)

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._writing is not None:
            with suppress(OSError):
                self._writing.result()
            self._writing = None


class StateReader(Mapping[str, Tensor]):
    """The tensors of a saved state by name, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._files: dict[Path, Any] = {}
        self._parts: dict[str, list[tuple[Path, int, int]]] = {}
        """For each tensor, the file, first row and number of rows of its parts."""
        self._shapes: dict[str, list[int]] = {}
        if (folder / SHARES_INDEX).is_file():
            index = json.loads((folder / SHARES_INDEX).read_text())
            for name, tensor in index["tensors"].items():
                parts = [(folder / p["file"], p["start"], p["rows"]) for p in tensor["parts"]]
                self._parts[name], self._shapes[name] = parts, tensor["shape"]
            return
        for file in (folder / name for name in WHOLE_FILES):
            for name in self._open(file).keys() if file.is_file() else ():
                shape = self._open(file).get_slice(name).get_shape()
                self._parts[name] = [(file, 0, shape[0] if shape else 1)]
                self._shapes[name] = shape

    def __enter__(self) -> StateReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _open(self, file: Path) -> Any:
        if file not in self._files:
            self._files[file] = self._stack.enter_context(safe_open(str(file), "pt"))
        return self._files[file]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor. Raises: KeyError if the state does not have it."""
        found = []
        for file, first, count in self._parts[name]:
            a, b = max(start, first), min(stop, first + count)
            if a < b:
                found.append(self._open(file).get_slice(name)[a - first : b - first])
        if not found:
            return torch.empty(0, *self._shapes[name][1:])
        return torch.cat(found) if len(found) > 1 else found[0]

    def get_tensor(self, name: str) -> Tensor:
        """A whole tensor. Raises: as `rows`."""
        shape = self._shapes[name]
        if not shape:
            return self._open(self._parts[name][0][0]).get_tensor(name)
        return self.rows(name, 0, shape[0])

    def __getitem__(self, name: str) -> Tensor:
        return self.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
