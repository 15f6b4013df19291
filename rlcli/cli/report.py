"""`rlcli report`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from rlcli.cli.arguments import Json


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run directories, names in outputs/, or latest."),
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page with plots.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What runs came to: result, health, curves, settings, samples."""
    from rlcli.report import read_runs, text_lines, to_json, write_page
    from rlcli.run_dir.folder import find_run

    found = read_runs([find_run(run, Path.cwd()) for run in runs])
    if html is not None:
        write_page(found, Path(os.path.expanduser(html)))
    if as_json:
        said = {"runs": [to_json(run) for run in found], "html": str(html) if html else None}
        # ascii: the control characters of 8-bit terminals, too, come out escaped
        print(json.dumps(said))
    elif html is not None:
        print(f"report: {html}")
    else:
        print("\n".join(text_lines(found, min(100, shutil.get_terminal_size().columns))))
