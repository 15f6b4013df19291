"""`rlcli presets`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

presets_app = typer.Typer(help="Algorithms and recipes.", no_args_is_help=True)


@presets_app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list on stdout.")] = False,
) -> None:
    """Every preset in one line."""
    from rlcli.config.presets import list_presets

    presets = list_presets()
    if as_json:
        rows = [
            {"name": p.name, "kind": p.kind, "title": p.title, "source": str(p.path)}
            for p in presets
        ]
        print(json.dumps(rows, ensure_ascii=False))
        return
    width = max(len(p.name) for p in presets)
    for kind in ("recipe", "algorithm"):
        print(f"{kind}s")
        for p in presets:
            if p.kind == kind:
                print(f"  {p.name:<{width}}  {p.title}")


@presets_app.command()
def show(name: Annotated[str, typer.Argument(help="Preset name.")]) -> None:
    """The preset's file."""
    from rlcli.config.presets import load_preset

    print(load_preset(name).path.read_text(encoding="utf-8"), end="")
