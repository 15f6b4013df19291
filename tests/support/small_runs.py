"""Short runs of the quickstart model in this process, and the metrics they wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rlcli.cli.main import main


def quickstart(*words: str) -> int:
    """The exit code of `rlcli train --preset quickstart`, four prompts a step, not evaluated."""
    with pytest.raises(SystemExit) as ended:
        main(["train", "--preset", "quickstart", "data.val=[]", "--batch_size", "4", *words])
    return int(ended.value.code or 0)


def judged(url: str, *words: str) -> int:
    """The same, into `run`, with two responses to a prompt and the judge at `url`."""
    judge = ["--use_api_reward", "--rm_base_url", url]
    return quickstart("rollout.n=2", "--output_dir", "run", *judge, *words)


def in_children(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have every Python process that is started from here on run `code` first."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


def metrics(run: Path | str = "run") -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
