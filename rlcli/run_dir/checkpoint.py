"""Checkpoint format: written to a scratch folder, hashed, renamed, and verified before use.

A folder of safetensors and JSON. The manifest, with a SHA-256 per file, is written last. The
folder gets its final name only when everything is on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from rlcli.system.disk import DiskBudget, folder_bytes

LOG = logging.getLogger(__name__)


MANIFEST = "manifest.json"
SHARES_INDEX = "shares.json"
"""File that lists the tensors of a sharded state."""
COPY_ROOM = 1.5
"""Free memory required to copy a state, in copies; leaves some for other processes."""
Resume = Literal["no", "newest"] | int
Scores = list[tuple[int, float]]
"""(step, held-out score), to find the best step."""


class EngineState(Protocol):
    """An engine's tensors, by the file they are saved in."""

    @property
    def num_bytes(self) -> int: ...

    def copied(self) -> EngineState:
        """A copy in host memory that training does not modify."""
        ...

    def save(self, folder: Path) -> Mapping[str, str]:
        """Write all files into an existing folder and release the tensors.

        Returns: file name -> SHA-256, for the files whose hash is already known.
        Raises: OSError if a file cannot be written.
        """
        ...


def _read_umask() -> int:
    """The process's umask. Reading it requires setting it, so only one thread may do so."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


_UMASK = _read_umask()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share(folder: Path) -> None:
    """Set the modes that the umask gives new files on everything below the folder.

    safetensors creates files that only their owner can read.
    """
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)


def seal(folder: Path, final: Path, known: Mapping[str, str] | None = None) -> None:
    """Sync the folder to disk and rename it to `final`, replacing an existing one.

    known: file name -> SHA-256 of files already on disk, which are not read again.
    """
    known = known or {}
    share(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    names = {path: str(path.relative_to(folder)) for path in files}
    hashes = {name: known.get(name) or _sha256(path) for path, name in names.items()}
    for path, name in names.items():
        if name not in known:
            _sync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"sha256": hashes}, indent=1))
    _sync(manifest)
    _sync(folder)
    if final.exists():
        old = final.with_name(f".old-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
        os.rename(folder, final)
        shutil.rmtree(old)
    else:
        os.rename(folder, final)
    _sync(final.parent)


def damage(folder: Path) -> str | None:
    """The first missing or changed file and its problem; None for an intact checkpoint."""
    return next(damages(folder), None)


def damages(folder: Path) -> Iterator[str]:
    """All missing or changed files of a checkpoint, with the problem of each."""
    manifest = folder / MANIFEST
    try:
        hashes: dict[str, str] = dict(json.loads(manifest.read_text())["sha256"])
    except FileNotFoundError:
        yield f"{manifest} is missing"
        return
    except (ValueError, KeyError, TypeError, OSError) as error:
        yield f"{manifest} cannot be read: {error}"
        return
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif _sha256(path) != expected:
            yield f"{path} was changed or cut after it was written"


def step_of(folder: Path) -> int | None:
    """N of `step_N`; None for other names."""
    prefix, _, number = folder.name.partition("_")
    return int(number) if prefix == "step" and number.isdigit() else None


def holds_critic(folder: Path) -> bool:
    """Whether a checkpoint contains a critic's state."""
    index = folder / SHARES_INDEX
    if not index.is_file():
        return (folder / "critic.safetensors").is_file()
    return any(name.startswith("critic.") for name in json.loads(index.read_text())["tensors"])


def saved_steps(folder: Path) -> list[int]:
    """Steps with a checkpoint in a run's `checkpoints`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(n for p in folder.iterdir() if (n := step_of(p)) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Contents of a checkpoint to write. state: everything except the engine's, as JSON."""

    step: int
    engine: EngineState
    state: str
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Result of a save. notes: for the user. error: why no checkpoint was written, or None."""

    step: int
    notes: list[str]
    error: OSError | None = None


class CheckpointFolder:
    """Writes a run's checkpoints and removes old ones. Not thread-safe.

    disk_budget: limit of the run directory in GiB.
    """

    def __init__(
        self, path: Path, *, keep: int, keeps_best: bool, disk_budget: float | None
    ) -> None:
        self.path = path
        self.keep, self.keeps_best = keep, keeps_best
        self._budget = DiskBudget(path.parent, disk_budget)

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        return saved_steps(self.path)

    def of(self, step: int) -> Path:
        """Path of a step's checkpoint."""
        return self.path / f"step_{step}"

    def scratch(self, step: int) -> Path:
        """Path of the scratch folder in which a step's checkpoint is written."""
        return self.path / f".part-step_{step}"

    def write(self, save: Save) -> Saved:
        """Write a complete checkpoint and remove old ones; after an error, leave nothing of it."""
        scratch, begun = self.scratch(save.step), time.monotonic()
        notes: list[str] = []
        try:
            notes += self.make_room(save.scores, share=1.0)
            scratch.mkdir(parents=True, exist_ok=True)  # another rank may already write its shard
            known = save.engine.save(scratch)
            (scratch / "state.json").write_text(save.state)
            seal(scratch, self.of(save.step), known)
            notes += self._prune(save.scores)
        except Exception as error:  # a failed save must not end training before its last save
            shutil.rmtree(scratch, ignore_errors=True)
            is_known = isinstance(error, OSError)
            save_error = error if is_known else OSError(f"{type(error).__name__}: {error}")
            return Saved(step=save.step, notes=notes, error=save_error)
        seconds = time.monotonic() - begun
        LOG.debug("checkpoint of step %d written in %.2f s", save.step, seconds)
        return Saved(step=save.step, notes=notes)

    def _prune(self, scores: Scores) -> list[str]:
        """Keep the newest checkpoints and the best one; the `latest` file is only for people."""
        steps = self.steps()
        (self.path / "latest").write_text(f"step_{steps[-1]}\n")
        best = self._best(scores)
        kept = set(steps[-self.keep :])
        if self.keeps_best and best is not None:
            kept.add(best)
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.of(step))
        for aside in self.path.glob("aside_step_*"):
            overtaken = step_of(aside.with_name(aside.name.removeprefix("aside_")))
            if overtaken is not None and overtaken <= steps[-1]:
                shutil.rmtree(aside, ignore_errors=True)
        return self.make_room(scores)

    def _best(self, scores: Scores) -> int | None:
        """The saved step with the highest score."""
        steps = self.steps()
        saved = [pair for pair in scores if pair[0] in steps]
        return max(saved, key=lambda pair: pair[1])[0] if saved else None

    def make_room(self, scores: Scores, *, share: float = 0.0) -> list[str]:
        """Remove checkpoints to stay within the disk budget; returns notes.

        share: part of a checkpoint still to be written. The newest checkpoint always stays; of the
        others, the best one is removed last.
        """
        if self._budget.limit_gib is None:
            return []
        steps, best = self.steps(), self._best(scores)
        spare = sorted(steps[:-1], key=lambda step: (step == best, step))
        coming = int(share * folder_bytes(self.of(steps[-1]))) if steps else 0
        return self._budget.make_room([self.of(n) for n in spare], coming=coming)
