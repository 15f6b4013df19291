"""The folder of the model that training or evaluation starts from, where that is not one already.

A run stands for its final model. An adapter stands for its base with the adapter merged in: the
policy and the reference then both start from base + adapter, whatever is trained on top of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from rlcli import hub
from rlcli.errors import ModelError
from rlcli.models.weight_files import ADAPTER, ADAPTER_WEIGHTS, MERGED
from rlcli.run_dir.checkpoint import share, step_of
from rlcli.run_dir.folder import RunDir, is_run


def find_start(path: str, *, source: hub.Hub, trust_remote_code: bool, merges: bool) -> Path:
    """The model folder that `path` stands for: a model, a run, or an adapter.

    merges: merge an adapter into its base, in the user's cache. Otherwise the folder of the base
    stands for it, which has the same configuration.

    Raises: ModelError for a run without a final model or an adapter that does not fit its base;
    as `hub.find_model`.
    """
    folder = _locate(path, source)
    if folder is None:
        try:
            return hub.find_model(str(_of_run(path) or path), hub=source)
        except ModelError:
            folder = _locate(path, source)  # a hub's adapter, which is in its cache by now
            if folder is None:
                raise
    base = _find_base(folder, source=source, trust_remote_code=trust_remote_code, merges=merges)
    if merges:
        return _merged(base, folder, trust_remote_code)
    from rlcli.engines.adapter import check_adapter

    check_adapter(base, folder, trust_remote_code=trust_remote_code)
    return base


def plain_path(path: str, *, source: hub.Hub) -> str:
    """A path or name whose config.json is that of the model `path` stands for."""
    folder = _locate(path, source)
    while folder is not None:
        path = _base_name(folder)
        folder = _locate(path, source)
    return str(_of_run(path) or path)


def describe(path: str, folder: Path) -> str | None:
    """A note if the policy does not start from `path` itself."""
    start = _of_run(path)
    if start is None and folder.parent != _cache():
        return None
    if start is not None and start == folder:
        return f"model {path} is a run: the policy and its reference start from {folder}"
    return f"model {path} is an adapter: the policy and its reference start from {folder}"


def _locate(path: str, source: hub.Hub) -> Path | None:
    """The folder of the adapter that `path` stands for, without asking the hub; None for others."""
    local = _of_run(path)
    if local is None:
        if path.startswith(hub.BUILTIN):
            return None
        local = Path(os.path.expanduser(path))
    if local.is_dir():
        return local if _is_adapter(local) else None
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        return None
    try:
        folder = hub.fetch(path, [ADAPTER], hub=source, kind="model", offline=True)
    except ModelError:
        return None
    return folder if _is_adapter(folder) else None


def _is_adapter(folder: Path) -> bool:
    if not (folder / ADAPTER).is_file():
        return False
    return not any(file.name != ADAPTER_WEIGHTS for file in folder.glob("*.safetensors"))


def _of_run(path: str) -> Path | None:
    """The final model of a run that `path` names; None where it names none.

    Raises: ModelError for a run without one, or a checkpoint of a run.
    """
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        return None
    step = step_of(folder)
    run = next((p for p in (folder, folder.parent, folder.parent.parent) if is_run(p)), None)
    if run is None or (folder not in (run, run / "checkpoints") and step is None):
        return None
    merge = " --merge-lora" if RunDir(run).config().lora.rank else ""
    final = run / "checkpoints" / "final"
    if step is not None or not final.is_dir():
        option = "" if step is None else f" --step {step}"
        raise ModelError(
            f"model {path} is not a model folder: of a run only the final model is one, in "
            "RUN/checkpoints/final. Export this, then give --model DEST:\n"
            f"rlcli ckpt export {run} DEST{option}{merge}"
        )
    merged = final / MERGED
    return merged if merged.is_dir() else final


def _read(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error


def _base_name(folder: Path) -> str:
    name = _read(folder).get("base_model_name_or_path")
    if not name:
        raise ModelError(
            f"adapter {folder} does not name its base model.\n"
            f"Set base_model_name_or_path in {folder / ADAPTER}."
        )
    return str(name)


def _find_base(folder: Path, **options: Any) -> Path:
    name = _base_name(folder)
    try:
        return find_start(name, **options)
    except ModelError as error:
        first = str(error).splitlines()[0]
        raise type(error)(
            f"adapter {folder} was trained on {name}, which cannot be loaded: {first}\n"
            f"Set base_model_name_or_path in {folder / ADAPTER} to where that model is."
        ) from error


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(home)) / "rlcli" / "merged"


def _merged(base: Path, adapter: Path, trust_remote_code: bool) -> Path:
    """Base and adapter in one folder of the cache; made once, by one process at a time."""
    key = hashlib.sha256()
    for folder in (base, adapter):
        for file in sorted(
            p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".json")
        ):
            about = file.stat()
            key.update(f"{file.resolve()} {about.st_size} {about.st_mtime_ns}\n".encode())
    done = _cache() / f"{adapter.resolve().name}-{key.hexdigest()[:16]}"
    try:
        done.parent.mkdir(parents=True, exist_ok=True)
        with (done.parent / f".{done.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.is_dir():
                scratch = done.with_name(f".part-{done.name}")
                shutil.rmtree(scratch, ignore_errors=True)
                _merge(base, adapter, scratch, trust_remote_code)
                share(scratch)
                os.rename(scratch, done)
    except OSError as error:
        raise ModelError(
            f"adapter {adapter} cannot be merged into its base in {done.parent}: "
            f"{error.strerror or error}.\nSet XDG_CACHE_HOME to a folder with room for the model."
        ) from error
    return done


def _merge(base: Path, adapter: Path, dest: Path, trust_remote_code: bool) -> None:
    from rlcli.engines.adapter import merge_adapter

    tokenizer = adapter if hub.has_tokenizer(adapter) else base
    merge_adapter(base, adapter, dest, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
