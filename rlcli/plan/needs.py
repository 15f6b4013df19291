"""Inputs that a run's estimator and loss require; custom functions are parsed, not imported."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from rlcli.algos.registry import ESTIMATORS, LOSSES, NEED_OF_INPUT, Entry, Need
from rlcli.config.schema import Config


def needs_of(config: Config) -> frozenset[Need]:
    """Required: critic, groups, greedy rollouts, reward parts, sums of pi^2.

    Empty for a custom function whose source cannot be read.
    """
    algorithm = config.algorithm
    return _needs(algorithm.advantage, ESTIMATORS) | _needs(algorithm.loss, LOSSES)


def _needs(name: str, table: Mapping[str, Entry]) -> frozenset[Need]:
    if name in table:
        return table[name].needs
    module, _, function = name.partition(":")
    arguments = _arguments(module, function, os.getcwd())
    return frozenset(NEED_OF_INPUT[name] for name in arguments if name in NEED_OF_INPUT)


@cache
def _arguments(module: str, function: str, cwd: str) -> frozenset[str]:
    """Names of a function's arguments, located as an import from `cwd` would locate it."""
    search = [cwd, *sys.path]
    source = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, search)
        if spec is None:
            return frozenset()
        search, source = [*(spec.submodule_search_locations or [])], spec.origin
    try:
        tree = ast.parse(Path(source or "").read_bytes())
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    found = [node.args for node in functions if node.name == function]
    return frozenset(a.arg for args in found for a in (*args.args, *args.kwonlyargs))
