"""Export a run's final model, or a checkpoint's policy, to a Hugging Face folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlcli.config.schema import Config
from rlcli.errors import CheckpointError, ConfigError, RunDirError
from rlcli.hub import read_config
from rlcli.models.weight_files import MERGED, check_merge
from rlcli.run_dir.checkpoint import MANIFEST, saved_steps, share
from rlcli.run_dir.folder import RunDir
from rlcli.run_dir.model_card import CARD, write_cards_of
from rlcli.tools.load_policy import find_checkpoint, load_policy, model_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written: from which folder, and whether weights, an adapter or both in one."""

    dest: Path
    source: Path
    kind: Literal["model", "adapter", "merged"]


def export_model(run: Path, dest: Path, *, step: int | None, merge_lora: bool) -> Export:
    """Write the final model to `dest`; before there is one, or with `step`, a checkpoint's policy.

    Raises: RunDirError when `dest` is taken, CheckpointError when there is nothing whole to export.
    """
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise RunDirError(f"{dest} is there already and not empty. Choose another folder.")
    config = RunDir(run).config()
    if merge_lora and not config.lora.rank:
        raise ConfigError(
            f"{run} trained full weights (lora.rank=0): there is no adapter to merge.\n"
            "Leave --merge-lora out."
        )
    source = find_checkpoint(run, step)
    scratch = dest.absolute().with_name(f".part-{dest.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        _write(source, scratch, config, merge_lora=merge_lora)
        if (state := source / "state.json").is_file():
            write_cards_of(scratch, config, state)
        elif merge_lora and source.name == "final" and not (scratch / CARD).is_file():
            steps = saved_steps(source.parent)
            write_cards_of(scratch, config, source.with_name(f"step_{steps[-1]}") / "state.json")
        share(scratch)
        os.rename(scratch, dest)
    except OSError as error:
        raise RunDirError(f"{dest} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    kind = "merged" if merge_lora else "adapter" if config.lora.rank else "model"
    return Export(dest=dest, source=source, kind=kind)


def _write(source: Path, folder: Path, config: Config, *, merge_lora: bool) -> None:
    if source.name == "final" and (not merge_lora or (source / MERGED).is_dir()):
        ready = source / MERGED if merge_lora else source
        shutil.copytree(ready, folder, ignore=shutil.ignore_patterns(MANIFEST, MERGED))

        from rlcli.engines.check_saved import problems

        if found := next(problems(folder, trust_remote_code=config.model.trust_remote_code), None):
            shown = found.replace(str(folder), str(ready))
            raise CheckpointError(
                f"{shown}.\nExport a checkpoint of the run instead: --step N (see rlcli ckpt list)."
            )
        return

    import torch

    from rlcli.engines.export import save_pretrained
    from rlcli.models.causal_lm import load_tokenizer

    device, trust = torch.device("cpu"), config.model.trust_remote_code
    base = model_folder(config, source)
    if merge_lora:
        check_merge(read_config(base), where=f"model.path={config.model.path}")
    policy, peft_model = load_policy(config, source, device=device, dtype=torch.float32)
    tokenizer = load_tokenizer(str(base), trust_remote_code=trust)
    if not merge_lora:
        save_pretrained(policy, peft_model, folder, tokenizer, merge_lora=False)
        return
    both = folder.with_name(f"{folder.name}-both")
    try:
        save_pretrained(policy, peft_model, both, tokenizer, merge_lora=True)
        os.rename(both / MERGED, folder)
    finally:
        shutil.rmtree(both, ignore_errors=True)
