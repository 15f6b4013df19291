"""`rlcli data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(help="Prepare and look at data.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="gsm8k, math or humaneval.")],
    local_dir: Annotated[Path, typer.Option(help="Folder to write into.")],
    source: Annotated[
        Path | None, typer.Option(help="File or folder to convert; none: the hub.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a public data set to parquet in verl's schema."""
    from rlcli.data.convert import convert

    report = convert(name, source, local_dir.expanduser())
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    for split, file in report["files"].items():
        print(f"{split}: {file['rows']} rows -> {file['path']}")


@data_app.command()
def check(
    files: Annotated[list[str], typer.Argument(help="Data files.")], as_json: Json = False
) -> None:
    """Read every row and list the bad ones; exit 2 if there is one."""
    from rlcli.config.schema import RewardConfig
    from rlcli.data.readers import scan_rows
    from rlcli.rewards import gold_problems
    from rlcli.rewards.rules import has_rule

    scan = scan_rows(files)
    graded = [row for row in scan.rows if has_rule(row.data_source)]
    golds = [(row.id, row.data_source, row.ground_truth) for row in graded]
    errors = [*scan.errors, *gold_problems(RewardConfig(), golds)]
    if as_json:
        said = {"rows": len(scan.rows), "graded_by_a_rule": len(graded), "errors": errors}
        print(json.dumps(said, ensure_ascii=False))
    else:
        sources = sorted({row.data_source or "(none)" for row in scan.rows})
        print(f"{len(scan.rows)} rows; data_source: {', '.join(sources)}")
        print(f"{len(graded)} rows have a built-in rule for their data_source")
        for error in errors:
            print(f"bad row: {error}")
    if errors:
        raise typer.Exit(2)


@data_app.command()
def show(
    file: Annotated[str, typer.Argument(help="Data file.")],
    n: Annotated[int, typer.Option("-n", help="Rows to show.")] = 3,
) -> None:
    """The first rows as rlcli reads them."""
    from rlcli.data.readers import read_rows

    for row in read_rows([file])[:n]:
        prompt = row.prompt if isinstance(row.prompt, str) else [dict(m) for m in row.prompt]
        shown = {
            "id": row.id,
            "prompt": prompt,
            "ground_truth": row.ground_truth,
            "data_source": row.data_source,
            "extra_info": dict(row.extra_info),
        }
        print(json.dumps(shown, ensure_ascii=False, indent=1, default=str))
