from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from rlcli.algos.registry import ESTIMATORS, LOSSES, Entry
from rlcli.config.schema import AlgorithmConfig

ROWS = [*ESTIMATORS.items(), *LOSSES.items()]
SELECTING = [(name, entry) for name, entry in LOSSES.items() if entry.select]


def load(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def names_of_kind(function: Callable[..., Any], kind: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is kind]


def keywords(path: str) -> set[str]:
    return set(names_of_kind(load(path), inspect.Parameter.KEYWORD_ONLY))


@pytest.mark.parametrize(("name", "entry"), ESTIMATORS.items(), ids=list(ESTIMATORS))
def test_estimators_ask_for_exactly_what_their_row_says(name: str, entry: Entry):
    assert keywords(entry.path) == {*entry.inputs, *entry.settings}
    positional = names_of_kind(load(entry.path), inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert positional == ["token_rewards_BT", "response_mask_BT"]


@pytest.mark.parametrize(("name", "entry"), LOSSES.items(), ids=list(LOSSES))
def test_losses_ask_for_exactly_what_their_row_says(name: str, entry: Entry):
    assert keywords(entry.path) == {"correction_BT", *entry.inputs, *entry.settings}
    positional = names_of_kind(load(entry.path), inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert positional == ["logprobs_BT", "old_logprobs_BT", "advantages_BT", "response_mask_BT"]


@pytest.mark.parametrize(("name", "entry"), SELECTING, ids=[name for name, _ in SELECTING])
def test_selections_ask_for_their_settings_random_numbers_and_other_ranks(name: str, entry: Entry):
    assert entry.select is not None
    assert keywords(entry.select) == {"draws_BT", "gather", *entry.select_settings}


@pytest.mark.parametrize(("name", "entry"), ROWS, ids=[name for name, _ in ROWS])
def test_every_setting_of_a_row_exists(name: str, entry: Entry):
    assert {*entry.settings, *entry.select_settings} <= set(AlgorithmConfig.model_fields)


def test_the_table_does_not_import_torch():
    code = "import sys, rlcli.algos.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
