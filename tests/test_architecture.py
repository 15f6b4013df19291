"""The house: who may import whom, how large rooms are, and that no setting is dead."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from rlcli.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rlcli"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each room may import from the rows above it only.
ROWS = (
    "types errors assets",
    "compat",
    "system terminal",
    "config",
    "models algos",
    "hub",
    "data",
    "run_dir",
    "distributed",
    "engines rollout rewards monitor",
    "envs",
    "doctor report setup",
    "plan",
    "trainer",
    "launcher",
    "tools",
    "api",
    "cli",
)
LEVELS = {room: level for level, row in enumerate(ROWS) for room in row.split()}
HEAVY = {"torch", "transformers", "peft", "pyarrow", "safetensors", "math_verify"} | {
    "openai", "anthropic", "google", "wandb", "tensorboard", "modelscope_hub",
}  # fmt: skip
LIGHT = ("config", "cli", "setup", "data", "monitor", "doctor", "plan", "run_dir", "system")
LIGHT += ("api", "report", "terminal", "hub", "tools.reward_test", "models.weight_files")
LIGHT += ("distributed.process_count", "distributed.rank_env")
"""Rooms and modules that commands without a model import."""


def room(module: str) -> str:
    return module.split(".")[1]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path, *, everywhere: bool) -> list[str]:
    """Modules a file imports: at module level outside TYPE_CHECKING, or everywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[str] = []
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{name.name}" for name in node.names]
            found += [name if name in MODULES else str(node.module) for name in names]
    return found


MODULES = {module_of(path).removesuffix(".__init__"): path for path in FILES}
EDGES = {
    module: {name for name in imports(path, everywhere=True) if name in MODULES} - {module}
    for module, path in MODULES.items()
}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"rlcli"}))
def test_imports_point_down_only(module: str) -> None:
    for target in EDGES[module] - {"rlcli"}:
        own, other = room(module), room(target)
        assert own == other or LEVELS[other] < LEVELS[own], f"{module} imports {target}"


def test_no_imports_in_a_circle() -> None:
    graph = {module: targets - {"rlcli"} for module, targets in EDGES.items()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_over_500_lines_and_no_function_over_80(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 80, f"{node.name} has {length} lines"


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


def test_light_rooms_import_nothing_heavy_at_module_level() -> None:
    for module, path in MODULES.items():
        if module.removeprefix("rlcli.").startswith(LIGHT):
            heavy = {name.split(".")[0] for name in imports(path, everywhere=False)} & HEAVY
            assert not heavy, f"{path} imports {heavy}"


def test_every_setting_is_read_somewhere() -> None:
    """A field nobody reads is a dead switch."""
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for path in FILES
        if path.name not in ("schema.py", "names.py", "keys.py", "unused_settings.py")
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
