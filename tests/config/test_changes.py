"""What counts as a changed setting."""

from __future__ import annotations

import pytest

from rlcli.config.changes import HOUSEKEEPING, NAMES, PER_SESSION, TENSORS, by_key, changes
from rlcli.config.schema import Config, defaults


@pytest.mark.parametrize("keys", [NAMES, HOUSEKEEPING, PER_SESSION, TENSORS])
def test_what_does_not_matter_is_there(keys: tuple[str, ...]) -> None:
    assert set(keys) <= defaults().keys()


def test_a_setting_that_one_side_lacks_did_not_change() -> None:
    before = {"train.lr": 1.0, "run.name": "a", "gone": 1}
    after = {"train.lr": 2.0, "run.name": "b", "later": 1}
    assert changes(before, after) == [("train.lr", 1.0, 2.0)]
    assert changes(before, after, free=["train.lr"]) == [("run.name", "a", "b")]


def test_the_seed_counts_and_where_a_run_lies_does_not() -> None:
    assert "run.seed" not in HOUSEKEEPING
    assert {"run.output_dir", "run.keep_checkpoints", "algorithm.name"} <= set(HOUSEKEEPING)


def test_a_written_configuration_is_read_by_key() -> None:
    assert by_key(Config().model_dump()) == defaults()
    assert by_key({"train": {"lr": 2.0, "speed": 3}, "reward": 7}) == {"train.lr": 2.0}
    assert by_key({"reward": {"weights": {"a": 1.0}}}) == {"reward.weights": {"a": 1.0}}


def test_a_setting_written_under_its_old_name_is_read() -> None:
    assert by_key({"rollout": {"max_rows": 7}}) == {"rollout.max_num_seqs": 7}
    assert by_key({"rollout": {"max_num_seqs": 7}}) == {"rollout.max_num_seqs": 7}
