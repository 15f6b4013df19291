"""Facts that must be the same on every node of a run: settings, data and models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlcli.config.base import leaves
from rlcli.config.changes import HOUSEKEEPING
from rlcli.config.resolved import Resolved, show
from rlcli.config.schema import HELD_OUT
from rlcli.data.files import find_files
from rlcli.distributed.process_count import num_local
from rlcli.errors import UsageError

DATA = ("data.train", "data.val")
MODELS = ("model.path", "critic.path", "reward.model")
WHOLE_FILE = 2**26
"""Bytes up to which a file is hashed in full; of a larger one, BLOCKS pieces are."""
BLOCK, BLOCKS = 2**20, 64
SHOWN = 100
"""Characters shown of a setting; a longer one also has a hash."""


def gather_facts(resolved: Resolved, *, num_gpus: int) -> dict[str, str]:
    """Facts by name. Names of files may differ between nodes, their contents may not.

    A missing data file is a fact too, so that every node reports which one lacks it.
    """
    config = resolved.config
    values = {k: v for k, v in leaves(config).items() if k not in (*HOUSEKEEPING, *DATA)}
    facts = {key: _short(show(value)) for key, value in values.items()}
    for key in MODELS:
        path = Path(str(values[key])).expanduser()
        if values[key] is not None and path.is_dir():
            facts[key] = describe_model(path)
    facts["train.n_gpus"] = str(num_local(config, num_gpus))
    facts["accelerator"] = "cuda" if num_gpus else "cpu"
    for key, sources in (("data.train", config.data.train), ("data.val", config.data.val)):
        facts[key] = show(sources) if HELD_OUT in sources else describe_data(sources)
    return facts


def describe_data(sources: Sequence[str]) -> str:
    """`1,234 bytes, sha256 0a1b2c3d4e5f`, or why they cannot be read."""
    try:
        files = [file for source in sources for file in find_files(source)]
        digests = "".join(fingerprint(file) for file in files)
        size = sum(file.stat().st_size for file in files)
    except UsageError as error:
        return " ".join(str(error).split())
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return f"{size:,} bytes, sha256 {_hash(digests)}"


def describe_model(folder: Path) -> str:
    """`config.json 0a1b2c3d4e5f, weights of 1,234 bytes`: weights are compared by size."""
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    config = folder / "config.json"
    digest = fingerprint(config)[:12] if config.is_file() else "missing"
    return f"config.json {digest}, weights of {sum(sizes):,} bytes"


def fingerprint(file: Path) -> str:
    """The SHA-256 of a file; for a large one, of its size and of evenly spaced pieces."""
    size = file.stat().st_size
    with file.open("rb") as data:
        if size <= WHOLE_FILE:
            return hashlib.file_digest(data, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for number in range(BLOCKS):
            data.seek((size - BLOCK) * number // (BLOCKS - 1))
            digest.update(data.read(BLOCK))
    return digest.hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ... (sha256 {_hash(str(value))})"
