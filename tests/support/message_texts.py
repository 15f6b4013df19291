"""Every sentence the package can say to a user, read out of its source, as templates."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rlcli import errors

PACKAGE = Path(errors.__file__).resolve().parent
PROSE = re.compile(r"(?<![\w.=/*-])[A-Za-z][a-z]{2,}(?=[,:;]? )|(?<= )[a-z]{2,}(?![\w=/*-])")
"""Two words in a row: names of settings, formats and paths are not prose."""

TELLING = ("note", "with_notes", "adjust", "info", "warning")
"""Methods that take what the user is to be told."""
PRINTING = ("cli", "report")
"""Folders that mostly write facts."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Text:
    """One line of a message. shape: its words, with {} for what is filled in."""

    shape: str
    where: str


def shape_of(template: str) -> str:
    """`template` without the names of its placeholders and the blanks around it."""
    return re.sub(r"(?<!\{)\{[^{}]+\}(?!\})", "{}", template).strip()


def template_of(node: ast.expr) -> str | None:
    """A string expression as a template with escaped braces; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value.replace("{", "{{").replace("}", "}}") if is_text(node) else None
    if isinstance(node, ast.JoinedStr):
        parts = [
            "{}" if isinstance(part, ast.FormattedValue) else template_of(part) or ""
            for part in node.values
        ]
        return "".join(parts)
    return None


def formatted_names(tree: ast.Module) -> set[str]:
    """Tables whose entries are templates: `WHY[name].format(...)`."""
    return {
        node.value.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "format"
        and isinstance(node.value, ast.Subscript)
        and isinstance(node.value.value, ast.Name)
    }


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


class Strings(ast.NodeVisitor):
    """Collects the string expressions of a tree, docstrings and annotations left out."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def visit_Constant(self, node: ast.Constant) -> None:
        self._keep(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._keep(node)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)

    def visit_Call(self, node: ast.Call) -> None:
        """`"...{name}...".format(name=...)` is a template as it stands; DEBUG is for developers."""
        callee = node.func
        if isinstance(callee, ast.Attribute) and callee.attr == "debug":
            return
        if isinstance(callee, ast.Attribute) and callee.attr == "format" and is_text(callee.value):
            assert isinstance(callee.value, ast.Constant)
            self.found.append((node.lineno, shape_of(str(callee.value.value))))
            for argument in [*node.args, *(word.value for word in node.keywords)]:
                self.visit(argument)
        else:
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not is_text(node.value):
            self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def _keep(self, node: ast.expr) -> None:
        template = template_of(node)
        if template:
            self.found.append((node.lineno, template))


def strings(node: ast.AST, path: Path) -> Iterator[Text]:
    """Every line of every string in `node`."""
    visitor = Strings()
    visitor.visit(node)
    name = path.relative_to(PACKAGE.parent)
    templates = formatted_names(node) if isinstance(node, ast.Module) else set()
    tables = [
        (statement.lineno, statement.end_lineno or 0)
        for statement in getattr(node, "body", [])
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) in templates
    ]
    for line, template in visitor.found:
        if any(first <= line <= last for first, last in tables):
            template = shape_of(template.replace("{{", "{").replace("}}", "}"))
        for part in template.split("\n"):
            if any(char.isalpha() for char in part):
                yield Text(part.strip(), f"{name}:{line}")


@cache
def trees() -> dict[Path, ast.Module]:
    return {
        path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def all_texts() -> tuple[Text, ...]:
    """Every line of every string of the package."""
    return tuple(text for path, tree in trees().items() for text in strings(tree, path))


@cache
def error_names() -> frozenset[str]:
    """The classes of what a user can cause, and what builds or wraps one."""
    return frozenset(
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.RlcliError)
    )


def talks(function: Function) -> bool:
    """Whether it makes an error, or tells the user something."""
    callees = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return any(
        (isinstance(callee, ast.Name) and callee.id in error_names())
        or (isinstance(callee, ast.Attribute) and callee.attr in TELLING)
        for callee in callees
    )


def gives_text(function: Function) -> bool:
    return function.returns is not None and "str" in ast.unparse(function.returns)


def error_texts() -> list[Text]:
    """Lines of prose in functions that raise an error, and in those that make text for them."""
    by_name: dict[str, list[tuple[Path, Function]]] = {}
    waiting: list[tuple[Path, Function]] = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                by_name.setdefault(node.name, []).append((path, node))
                if talks(node):
                    waiting.append((path, node))
    seen: set[int] = set()
    found: list[Text] = []
    while waiting:
        path, function = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        spoken = told_by(function, path)
        for node in spoken:
            found += [text for text in strings(node, path) if PROSE.search(text.shape)]
        for called in called_names(spoken):
            here = [item for item in by_name.get(called, ()) if gives_text(item[1])]
            own = [item for item in here if item[0] == path]
            waiting += own or (here if len(here) == 1 else [])
    return found


def told_by(function: Function, path: Path) -> list[ast.stmt]:
    """The statements that may make a message: what a command prints and a page are none."""
    helps = path.parent.name == "cli" and function.name.startswith("_") and gives_text(function)
    if path.parent.name not in PRINTING or helps:
        return function.body
    return [node for node in ast.walk(function) if isinstance(node, ast.Raise)]


def called_names(statements: list[ast.stmt]) -> set[str]:
    nodes = [node for statement in statements for node in ast.walk(statement)]
    callees = [node.func for node in nodes if isinstance(node, ast.Call)]
    return {
        callee.id if isinstance(callee, ast.Name) else callee.attr
        for callee in callees
        if isinstance(callee, ast.Name | ast.Attribute)
    }


def texts_in(names: tuple[str, ...]) -> list[Text]:
    """Lines of prose in whole files or folders of the package."""
    return [
        text
        for text in all_texts()
        if text.where.partition(":")[0].startswith(tuple(f"rlcli/{name}" for name in names))
        and PROSE.search(text.shape)
    ]
