"""The live panel in a notebook: one output of the cell, replaced after every step."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType

WIDTH = 88
FORMAT = '<pre style="font-family:ui-monospace,monospace;line-height:1.2;margin:0">{code}</pre>'


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class NotebookPanel:
    """Shows what `render` returns in the output of the cell that is running."""

    def __init__(self, render: Callable[[], RenderableType]) -> None:
        self._render = render
        self._display: Any = None

    def start(self) -> None:
        """Show it for the first time."""
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        self._display = display(self._html(), display_id=True)

    def refresh(self) -> None:
        """Show it as it is now, in the same place."""
        if self._display is not None:
            self._display.update(self._html())

    def stop(self) -> None:
        """Leave its last state in the notebook."""
        self.refresh()

    def _html(self) -> Any:
        from IPython.display import HTML  # pyright: ignore[reportMissingImports]

        console = Console(
            record=True,
            file=io.StringIO(),
            width=WIDTH,
            force_terminal=True,
            force_jupyter=False,
            color_system="truecolor",
        )
        console.print(self._render())
        return HTML(console.export_html(inline_styles=True, code_format=FORMAT))
