"""Send metrics to Weights & Biases and TensorBoard.

A tracker may fail in any way: it is switched off with one note, and the run goes on.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from rlcli.config.schema import RunConfig
from rlcli.run_dir.folder import RunDir, write_json

PROJECT = "rlcli"
INSTALL = "pip install -e '.[trackers]'"
KEPT = "metrics.jsonl has everything"
WANDB_START_S = 30.0
WANDB_FINISH_S = 60.0


class Tracker(Protocol):
    """A service or file that receives metrics."""

    name: str

    def begin(self, step: int) -> str | None:
        """Continue after `step` steps; later logged steps are invalid. Returns a note, if any."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of training step `step`, or of an evaluation after it."""
        ...

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        ...


class Trackers:
    """All trackers of a run. Every call returns notes for the user, usually none."""

    def __init__(self, trackers: Sequence[Tracker] = (), *, has_console: bool = True) -> None:
        self.has_console = has_console
        self._trackers = list(trackers)

    @property
    def names(self) -> list[str]:
        """Names of the trackers that work."""
        return [tracker.name for tracker in self._trackers]

    def begin(self, step: int) -> list[str]:
        """Continue after `step` steps."""
        return self._each("begin", step)

    def log(self, step: int, values: Mapping[str, float | None]) -> list[str]:
        """Log metrics after `step` steps; None values are omitted."""
        numbers = {k: float(v) for k, v in values.items() if v is not None and k != "step"}
        return self._each("log", step, numbers)

    def close(self, *, failed: bool) -> list[str]:
        """End all trackers because the run ended or paused."""
        notes = self._each("close", failed=failed)
        self._trackers = []
        return notes

    def _each(self, call: str, *args: Any, **kwargs: Any) -> list[str]:
        notes = []
        for tracker in list(self._trackers):
            try:
                note = getattr(tracker, call)(*args, **kwargs)
                notes += [note] if note else []
            # third-party code that uses the network: no error of it may end the run
            except Exception as error:
                self._trackers.remove(tracker)
                if call != "close":
                    # it already failed: a second error adds nothing
                    with suppress(Exception):
                        tracker.close(failed=True)
                notes.append(f"{tracker.name} is switched off: {_first_line(error)} ({KEPT}).")
        return notes


def build_trackers(run: RunConfig, run_dir: RunDir) -> tuple[Trackers, list[str]]:
    """(trackers that run.loggers names, notes on those that cannot work as configured)."""
    trackers: list[Tracker] = []
    notes: list[str] = []
    for name in dict.fromkeys(run.loggers):
        if name == "console":
            continue
        try:
            if name == "tensorboard":
                trackers.append(TensorBoard(run_dir))
            else:
                tracker = Wandb(run, run_dir)
                trackers.append(tracker)
                notes += tracker.notes
        except ImportError as error:
            missing = error.name or name
            notes.append(f"{name} needs the package {missing}: {INSTALL} ({KEPT}).")
        # wandb and tensorboard raise their own classes and those of their dependencies
        except Exception as error:
            notes.append(f"{name} cannot start: {_first_line(error)} ({KEPT}).")
    return Trackers(trackers, has_console="console" in run.loggers), notes


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class TensorBoard:
    """Writes event files to `tensorboard/` in the run directory."""

    name = "tensorboard"

    def __init__(self, run_dir: RunDir) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run_dir.path / "tensorboard"
        self._build: Any = SummaryWriter
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Open the writer; readers then drop points that an earlier session logged after `step`."""
        purge = step + 1 if self._folder.is_dir() else None
        self._writer = self._build(str(self._folder), purge_step=purge, flush_secs=10)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point per metric."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """One run on Weights & Biases, continued after every resume: its id is in wandb.json."""

    name = "wandb"

    def __init__(self, run: RunConfig, run_dir: RunDir) -> None:
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        self.notes: list[str] = []
        self._wandb: Any = wandb
        self._file = run_dir.path / "wandb.json"
        self._sent: dict[str, Any] = {"id": secrets.token_hex(4), "train": 0, "eval": -1}
        if self._file.is_file():
            self._sent |= json.loads(self._file.read_text(encoding="utf-8"))
        name = run.name or run_dir.path.resolve().name
        settings = {"project": run.project or PROJECT, "name": name, "dir": str(run_dir.path)}
        self._run: Any = self._start({**settings, "config": run_dir.written_config()})
        write_json(self._file, self._sent)
        sync = f"wandb sync {run_dir.path / 'wandb' / 'offline-run-*'}"
        self.notes = [f"{note}; send it later with: {sync}" for note in self.notes]

    def _start(self, settings: Mapping[str, Any]) -> Any:
        """Start the wandb run: online if possible, otherwise offline."""
        # only wandb's first setup call can silence it; its output would overwrite the panel
        self._wandb.setup(settings=self._wandb.Settings(silent=True))
        if os.environ.get("WANDB_MODE"):
            if os.environ["WANDB_MODE"] in ("offline", "dryrun"):
                self.notes.append("wandb runs offline (WANDB_MODE)")
            return self._init(settings)
        if not self._wandb.login(prompt=False, verify=False):
            self.notes.append("wandb has no key (WANDB_API_KEY, or: wandb login) and runs offline")
            return self._init(settings, mode="offline")
        try:
            return self._init(settings, resume="allow")
        except self._wandb.CommError as error:
            self._wandb.teardown()
            self.notes.append(f"wandb cannot be reached and runs offline ({_first_line(error)})")
            return self._init(settings, mode="offline")

    def _init(self, settings: Mapping[str, Any], **options: Any) -> Any:
        quiet = self._wandb.Settings(
            silent=True,
            console="off",
            init_timeout=WANDB_START_S,
            finish_timeout=WANDB_FINISH_S,
        )
        return self._wandb.init(**settings, **options, id=self._sent["id"], settings=quiet)

    def begin(self, step: int) -> str | None:
        """Return a note if wandb has later steps: they cannot be deleted there."""
        last = self._sent["train"]
        if last <= step:
            return None
        return f"wandb has steps {step + 1} to {last} from before and keeps those ({KEPT})."

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send metrics not sent before; training and evaluation of a step become one row."""
        kind = "train" if "epoch" in values else "eval"
        if step <= self._sent[kind]:
            return
        self._run.log(dict(values), step=step)
        self._sent[kind] = step
        write_json(self._file, self._sent)

    def close(self, *, failed: bool) -> None:
        """End the session; a run stopped in order to be resumed does not count as failed."""
        self._run.finish(exit_code=int(failed))
