"""Runs the cells of a notebook one after the other, in `__main__`, as a kernel does.

python notebook_cells.py NOTEBOOK RESULT [OLD NEW]...   texts of the cells to replace
RESULT gets the value of the last line of each code cell as JSON, null if it is no expression.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any


def run_cell(source: str, number: int) -> Any:
    """Execute a cell; the value of its last expression."""
    import __main__

    tree, name = ast.parse(source), f"<cell {number}>"
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), vars(__main__))
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), name, "eval"), vars(__main__))


def main() -> None:
    notebook, result, *changes = sys.argv[1:]
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert any(old in text for text in texts), old
        texts = [text.replace(old, new) for text in texts]
    values = [run_cell(text, number) for number, text in enumerate(texts)]
    Path(result).write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":
    main()
