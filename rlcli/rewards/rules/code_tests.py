"""From a row's ground truth to the job that a sandbox runs."""

from __future__ import annotations

import ast
import builtins
import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rlcli.rewards.rules.code_blocks import (
    SOLUTION_IMPORTS,
    defines,
    find_code,
    helpers_of,
    parse,
)
from rlcli.rewards.rules.undecided import InvalidReference

CACHED = 64
"""Rows whose tests are remembered: those of EvalPlus have megabytes, and a group shares them."""


def make_job(
    ground_truth: Any, extra_info: Mapping[str, Any], response: str
) -> dict[str, Any] | None:
    """The job of one response; None where it has no code.

    Raises: InvalidReference.
    """
    gold = read_tests(ground_truth)
    if isinstance(gold, dict):
        return _job_of_cases(gold, response, extra_info)
    name = _text(extra_info, "entry_point") or _checked_name(gold)
    prefix = _text(extra_info, "prefix")
    helpers = helpers_of(prefix, name)
    setup = [_joined(extra_info.get(key)) for key in ("test_imports", "test_setup_code")]
    tests = "\n".join([*filter(None, setup), gold])
    if _is_unchecked(gold):
        if not name:
            raise InvalidReference(
                "the tests define check() and never call it, and there is no entry_point"
            )
        tests += f"\ncheck({name})\n"
    needs = _needs_of(tests, helpers, name)
    code = find_code(response, [name] if name else needs["names"], prefix=prefix)
    if code is None:
        return None
    return {"parts": [helpers, code], "prefix": helpers, "tests": tests, **needs}


def read_tests(ground_truth: Any) -> str | dict[str, Any]:
    """Tests as one source, or {"inputs", "outputs"} and perhaps "fn_name".

    Raises: InvalidReference.
    """
    gold = ground_truth
    if isinstance(gold, str) and gold.lstrip()[:1] in ("{", "["):
        try:
            gold = json.loads(gold)
        except ValueError:
            gold = ground_truth
    if isinstance(gold, Mapping):
        return _read_cases(gold)
    if isinstance(gold, list) and gold and all(isinstance(test, Mapping) for test in gold):
        return _read_records(gold)
    if not isinstance(gold, str | list | tuple) or not _joined(gold):
        shown = type(gold).__name__ if gold else "empty"
        raise InvalidReference(
            f"ground_truth is {shown}, expected tests: code, or inputs and outputs"
        )
    tests = _joined(gold)
    problem = _problem(tests)
    if problem:
        raise InvalidReference(problem)
    return tests


@lru_cache(maxsize=CACHED)
def _problem(tests: str) -> str | None:
    tree = parse(tests)
    if tree is None:
        return "the tests in ground_truth are no Python that compiles"
    if not any(isinstance(node, ast.Assert | ast.Call) for node in ast.walk(tree)):
        return "ground_truth has no tests: neither an assert nor a call"
    return None


def _read_cases(gold: Mapping[str, Any]) -> dict[str, Any]:
    inputs, outputs = gold.get("inputs"), gold.get("outputs")
    if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence):
        found = ", ".join(map(str, gold)) or "nothing"
        raise InvalidReference(f"ground_truth has {found}, expected inputs and outputs")
    if not inputs or len(inputs) != len(outputs):
        raise InvalidReference(f"ground_truth has {len(inputs)} inputs and {len(outputs)} outputs")
    name = gold.get("fn_name")
    return {"inputs": list(inputs), "outputs": list(outputs), "fn_name": name}


def _read_records(tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tests in LiveCodeBench's format: objects with "input", "output" and "testtype"."""
    lacking = next((test for test in tests if not {"input", "output"} <= test.keys()), None)
    if lacking is not None:
        found = ", ".join(map(str, lacking)) or "nothing"
        raise InvalidReference(f"a test in ground_truth has {found}, expected input and output")
    kinds = {str(test.get("testtype", "stdin")) for test in tests}
    if kinds not in ({"stdin"}, {"functional"}):
        found = ", ".join(sorted(kinds))
        raise InvalidReference(
            f"ground_truth has tests of type {found}, expected stdin or functional"
        )
    return {
        "inputs": [test["input"] for test in tests],
        "outputs": [test["output"] for test in tests],
        "fn_name": None,
        "is_function": kinds == {"functional"},
    }


def _function_name(extra_info: Mapping[str, Any], code: str) -> str | None:
    """Name of the function that functional tests call, or None.

    Taken from `metadata.func_name` or the starter code in extra_info, else the only public method
    of the response's class Solution, or its only function.
    """
    metadata = _read(extra_info.get("metadata"))
    for place in (extra_info, metadata if isinstance(metadata, Mapping) else {}):
        for key in ("func_name", "fn_name"):
            if name := _text(place, key):
                return name
    starter = re.findall(r"^\s*def\s+(\w+)", _text(extra_info, "starter_code"), re.M)
    if starter:
        return starter[-1]
    tree = parse(code)
    body = tree.body if tree else []
    classes = [n for n in body if isinstance(n, ast.ClassDef) and n.name == "Solution"]
    nodes = classes[-1].body if classes else body
    names = {n.name for n in nodes if isinstance(n, ast.FunctionDef) and n.name[0] != "_"}
    return names.pop() if len(names) == 1 else None


def _job_of_cases(
    gold: Mapping[str, Any], response: str, extra_info: Mapping[str, Any]
) -> dict[str, Any] | None:
    name = gold["fn_name"]
    if gold.get("is_function"):
        name = _function_name(extra_info, find_code(response, ["Solution"]) or "")
        if name is None:
            return None
    code = find_code(response, ["Solution", name] if name else [])
    if code is None:
        return None
    pairs = list(zip(gold["inputs"], gold["outputs"], strict=True))
    if not name:
        return {"parts": [code], "cases": [[_lines(given), _lines(out)] for given, out in pairs]}
    calls = [[_arguments(given), _read(out)] for given, out in pairs]
    if defines(code, "Solution"):
        return {"parts": [SOLUTION_IMPORTS, code], "path": ["Solution", name], "calls": calls}
    return {"parts": [code], "path": [name], "calls": calls}


@lru_cache(maxsize=CACHED)
def _needs_of(tests: str, helpers: str, name: str | None) -> dict[str, list[str]]:
    """Which names of the tests the code has to give, and which modules they need."""
    tree = parse(f"{helpers}\n{tests}") or ast.Module(body=[], type_ignores=[])
    nodes = list(ast.walk(tree))
    loaded = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    bound |= {n.name for n in nodes if isinstance(n, _NAMED) and n.name}
    aliases = [a for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names]
    bound |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
    called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    free = loaded - bound - set(dir(builtins)) - {"__name__"}
    modules = (free & sys.stdlib_module_names) - called
    names = free - modules | ({name} if name else set())
    imported = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
    imported += [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    packages = {module.partition(".")[0] for module in imported if module}
    return {
        "names": sorted(names or _shadowed(tree)),
        "stdlib": sorted(modules),
        "modules": sorted(packages - sys.stdlib_module_names),
    }


_NAMED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler


def _shadowed(tree: ast.Module) -> set[str]:
    """The builtin that every assert calls: MBPP asks for functions called `sum` and `max` too.

    Other builtins stay the tests' own, or code could bring its own `len` and `sorted`.
    """
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    called = [
        {n.func.id for n in ast.walk(a) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        for a in asserts
    ]
    return set.intersection(*called) if called else set()


def _checked_name(tests: str) -> str | None:
    """The function that the last line of HumanEval's tests hands to check()."""
    found = re.findall(r"^check\(\s*([A-Za-z_]\w*)\s*\)", tests, re.M)
    return found[-1] if found else None


def _is_unchecked(tests: str) -> bool:
    return bool(re.search(r"^def check\(", tests, re.M)) and not re.search(r"^check\(", tests, re.M)


def _text(extra_info: Mapping[str, Any], key: str) -> str:
    value = extra_info.get(key)
    return value if isinstance(value, str) else ""


def _joined(value: Any) -> str:
    """Lines of code, given as one text or as a list of texts."""
    if isinstance(value, str):
        return value.strip("\n") if value.strip() else ""
    lines = value if isinstance(value, list | tuple) else ()
    return "\n".join(str(line) for line in lines if str(line).strip())


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _read(value: Any) -> Any:
    """A value that may be written as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _arguments(value: Any) -> list[Any]:
    """The arguments of a call: a list, or one JSON value a line."""
    if isinstance(value, str):
        return [_read(line) for line in value.splitlines() if line.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]
