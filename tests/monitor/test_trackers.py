"""Metrics go to trackers, and a tracker can never end a run."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rlcli.config.schema import RunConfig
from rlcli.monitor.trackers import Tracker, Trackers, build_trackers
from rlcli.run_dir.folder import RunDir


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"train": {"lr": 1e-6}}))
    return RunDir(tmp_path / "run")


def run(*loggers: str) -> RunConfig:
    return RunConfig.model_validate({"loggers": loggers})


class Fragile:
    """A tracker that breaks at one of its calls."""

    name = "fragile"

    def __init__(self, breaks_at: str) -> None:
        self.breaks_at = breaks_at
        self.logged: list[tuple[int, Mapping[str, float]]] = []

    def _call(self, name: str) -> None:
        if name == self.breaks_at:
            raise RuntimeError(f"{name} broke.\nAt length.")

    def begin(self, step: int) -> None:
        self._call("begin")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._call("log")
        self.logged.append((step, values))

    def close(self, *, failed: bool) -> None:
        self._call("close")


@pytest.mark.parametrize("breaks_at", ["begin", "log", "close"])
def test_a_tracker_that_raises_is_switched_off_with_one_note(breaks_at: str) -> None:
    fragile: Tracker = Fragile(breaks_at)
    steady = Fragile("never")
    trackers = Trackers([fragile, steady])
    notes = [*trackers.begin(0)]
    for step in (1, 2):
        notes += trackers.log(step, {"step": step, "loss": 0.5, "bad": None})
    notes += trackers.close(failed=False)
    text = f"fragile is switched off: {breaks_at} broke (metrics.jsonl has everything)."
    assert notes == [text]
    assert steady.logged == [(1, {"loss": 0.5}), (2, {"loss": 0.5})]


@pytest.mark.parametrize(
    ("name", "package"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_a_tracker_that_is_not_installed_names_the_line_to_type(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    trackers, notes = build_trackers(run("console", name), run_dir)
    assert trackers.names == []
    assert trackers.has_console
    (note,) = notes
    assert "pip install -e '.[trackers]'" in note
    assert name in note


def test_the_console_is_one_of_the_loggers(run_dir: RunDir) -> None:
    trackers, notes = build_trackers(run(), run_dir)
    assert not trackers.has_console
    assert notes == []


def test_tensorboard_holds_every_step_once_after_a_resume(run_dir: RunDir) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # killed after step 3, resumed from the checkpoint of step 1
    for done, steps in ((0, (1, 2, 3)), (1, (2, 3, 4))):
        trackers, notes = build_trackers(run("tensorboard"), run_dir)
        assert notes == trackers.begin(done) == []
        for step in steps:
            assert trackers.log(step, {"step": step, "epoch": 1, "x": step + done / 10}) == []
        assert trackers.close(failed=False) == []
    events = EventAccumulator(str(run_dir.path / "tensorboard"))
    events.Reload()
    points = [(event.step, round(event.value, 3)) for event in events.Scalars("x")]
    assert points == [(1, 1.0), (2, 2.1), (3, 3.1), (4, 4.1)]


def wandb_rows(file: Path) -> list[dict[str, float]]:
    """The history in an offline run: a 7-byte head, then records of a LevelDB log."""
    from wandb.proto import wandb_internal_pb2

    content, at, rows = file.read_bytes(), 7, []
    while at + 7 <= len(content):
        size, kind = struct.unpack_from("<HB", content, at + 4)
        at += 7
        if kind == 1:
            record = wandb_internal_pb2.Record.FromString(content[at : at + size])
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append(
                    {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
                )
        at += size
    return rows


def test_wandb_without_a_key_runs_offline_under_one_id(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    told: list[str] = []
    for done, steps in ((0, (1, 2, 3)), (1, (2, 3, 4))):
        trackers, notes = build_trackers(run("wandb"), run_dir)
        (note,) = notes
        assert "runs offline" in note
        assert "wandb sync" in note
        told += trackers.begin(done)
        for step in steps:
            assert trackers.log(step, {"step": step, "epoch": 1, "x": float(step)}) == []
        assert trackers.log(steps[-1], {"step": steps[-1], "eval/pass@1": 0.5}) == []
        assert trackers.close(failed=False) == []
    wandb.teardown()  # its service writes on after finish; a process waits for it when it ends
    assert told == [
        "wandb has steps 2 to 3 from before and keeps those (metrics.jsonl has everything)."
    ]
    files = sorted((run_dir.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    first, second = (wandb_rows(file) for file in files)
    assert [row["_step"] for row in first] == [1, 2, 3]
    assert first[-1]["eval/pass@1"] == 0.5
    assert [row["_step"] for row in second] == [4]


def test_a_wandb_that_cannot_be_reached_runs_offline(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "c" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("rlcli.monitor.trackers.WANDB_START_S", 1.0)
    trackers, notes = build_trackers(run("wandb"), run_dir)
    (note,) = notes
    assert "cannot be reached and runs offline" in note
    assert trackers.begin(0) == []
    assert trackers.log(1, {"step": 1, "epoch": 1, "x": 1.0}) == []
    assert trackers.close(failed=True) == []
    assert list((run_dir.path / "wandb").glob("offline-run-*/run-*.wandb"))
    written = "".join(
        p.read_text("utf-8", "replace") for p in run_dir.path.rglob("*") if p.is_file()
    )
    assert "c" * 40 not in written
