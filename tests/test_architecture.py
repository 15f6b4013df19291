"""The house: who may import whom, how large rooms are, and that no setting is dead."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from rlcli.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rlcli"
FILES = sorted(PACKAGE.rglob("*.py"))

# Lower may not import higher; areas of level 3 may not import each other.
LEVELS = {
    "types": 0,
    "errors": 0,
    "rank_env": 1,
    "lang": 0,
    "text": 1,
    "machine": 1,
    "config": 1,
    "boxed": 1,
    "packed": -1,
    "forward": 0,
    "load_check": 1,
    "cpu_linear": 1,
    "gated": 1,
    "packed_flex": 1,
    "disk": 1,
    "weight_files": 1,
    "model_loading": 1,
    "causal_lm": 2,
    "hub": 2,
    "disk_need": 2,
    "launch": 2,
    "compiled": 2,
    "checkpoint": 2,
    "model_card": 2,
    "algos": 3,
    "rollout": 3,
    "engines": 3,
    "rewards": 3,
    "data": 3,
    "saving": 3,
    "monitor": 3,
    "assets": 3,
    "preflight": 4,
    "doctor": 4,
    "report": 4,
    "run_path": 4,
    "start_model": 4,
    "seen": 3.5,
    "collate": 3.7,
    "collect": 4,
    "trainer": 4,
    "in_sync": 5,
    "inputs": 5,
    "crew": 5,
    "samplers": 6,
    "models": 7,
    "build": 8,
    "trained": 8,
    "plan": 7,
    "recommend": 9,
    "comparison": 9,
    "launcher": 9,
    "survey": 9,
    "session": 9,
    "exporter": 9,
    "evaluation": 9,
    "reward_trial": 9,
    "cli": 10,
}
HEAVY = {"torch", "transformers", "peft", "pyarrow", "safetensors", "math_verify"} | {
    "openai", "anthropic", "google", "wandb", "tensorboard", "modelscope_hub",
}  # fmt: skip
LIGHT_AREAS = ("config", "cli", "preflight", "data", "monitor", "launch", "doctor", "plan")
LIGHT_AREAS += (
    "machine",
    "inputs",
    "text",
    "hub",
    "reward_trial",
    "rank_env",
)
LIGHT_AREAS += ("weight_files",)


def area(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "rlcli"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path, *, everywhere: bool) -> list[str]:
    """Modules a file imports: at module level, or everywhere; type-checking blocks left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    hidden = {id(child) for block in blocks for child in ast.walk(block)}
    found = []
    for node in ast.walk(tree) if everywhere else tree.body:
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            if node.module == "rlcli":
                found += [f"rlcli.{name.name}" for name in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down_only(path: Path) -> None:
    own = area(module_of(path))
    if own in ("__init__", "_presets"):
        return
    for target in imports(path, everywhere=True):
        if not target.startswith("rlcli."):
            continue
        other = area(target)
        if other == "__version__":
            continue
        assert other in LEVELS, f"{path}: place {other} in the layers"
        if other == own:
            continue
        assert LEVELS[other] < LEVELS[own] or (own, other) == ("trainer", "collect"), (
            f"{path} imports {target}: {own} is not above {other}"
        )


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_over_400_lines_and_no_function_over_60(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


def test_help_and_presets_list_import_no_torch() -> None:
    code = (
        "import sys, contextlib\n"
        "from rlcli.cli.main import app\n"
        "for args in (['--help'], ['train', '--help'], ['presets', 'list']):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        app(args)\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_light_areas_import_nothing_heavy_at_module_level() -> None:
    for path in FILES:
        own = area(module_of(path))
        if own in LIGHT_AREAS:
            heavy = {name.split(".")[0] for name in imports(path, everywhere=False)} & HEAVY
            assert not heavy, f"{path} imports {heavy}"


def test_every_setting_is_read_somewhere() -> None:
    """A field nobody reads is a dead switch."""
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for path in FILES
        if path.name not in ("schema.py", "verl_keys.py", "unused.py")
    )
    names = {
        (section, name)
        for section, field in Config.model_fields.items()
        for name in field.annotation.model_fields  # type: ignore[union-attr]
    }
    attributes = {
        node.attr for path in FILES for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
    }  # fmt: skip
    for section, name in sorted(names):
        # algorithm settings also reach their function by the name in the table
        assert name in attributes or f'"{name}"' in sources, f"{section}.{name} is read nowhere"


def test_no_mark_of_unfinished_work() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for mark in marks:
            if mark == marks[2] and path.name == "causal_lm.py":
                continue  # caught from models, not raised
            assert mark not in text, f"{path}: {mark}"
