"""Which names a run may have, and which checkpoint of which directory is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcli.config.schema import Config, RunConfig
from rlcli.errors import CheckpointError, RunDirError
from rlcli.run_dir.find_run import check_name, find_run_dir


def config(**run: object) -> Config:
    return Config(run=RunConfig.model_validate(run))


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x1b[0m", "..", ".", "../..", "/x", "a/b", "a/", "checkpoints"]
)
def test_what_is_no_name_for_a_folder_is_refused(name: str) -> None:
    with pytest.raises(RunDirError, match="is no name for a folder"):
        check_name(config(name=name))


@pytest.mark.parametrize("name", [None, "one", "a b", "v1.2", "\u5b9e\u9a8c"])
def test_names_are_taken_as_they_are(name: str | None) -> None:
    check_name(config(name=name))


def test_a_step_is_looked_for_before_the_run_is_touched(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "step_2").mkdir(parents=True)
    (checkpoints / ".old-step_3").mkdir()
    for step in (2, 3):
        wanted = config(output_dir="run", resume=str(step))
        assert find_run_dir(wanted, tmp_path) == (Path("run"), step)
    with pytest.raises(CheckpointError, match="no checkpoint of step 4; it has: 2"):
        find_run_dir(config(output_dir="run", resume="4"), tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        find_run_dir(config(resume=str(checkpoints / "step_5")), tmp_path)
    with pytest.raises(CheckpointError, match="/outputs has no checkpoint of step 6, nor"):
        find_run_dir(config(resume="6"), tmp_path)
