"""`rlcli config`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rlcli.cli.arguments import Json
from rlcli.cli.options import RunRequest, takes_run_options

config_app = typer.Typer(help="Settings: show, check, compare, write.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Preset, config file or run directory.")]


@config_app.command()
@takes_run_options
def show(
    request: RunRequest,
    sources: Annotated[bool, typer.Option("--sources", help="Where each value is from.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is no default.")] = False,
    as_json: Json = False,
) -> None:
    """The settings of a run, as YAML that --config reads."""
    from rlcli.config.compare import as_yaml
    from rlcli.config.schema import defaults
    from rlcli.setup.checks import check

    resolved = check(request.resolve())
    standard = defaults()
    values = resolved.values()
    if changed:
        values = {key: value for key, value in values.items() if value != standard[key]}
    if as_json:
        said: dict[str, Any] = {"config": values, "warnings": resolved.notes}
        if sources:
            said["sources"] = {key: resolved.sources[key] for key in values}
        print(json.dumps(said, ensure_ascii=False))
        return
    origins = {key: resolved.sources[key] for key in values} if sources else {}
    origins = {key: origin for key, origin in origins.items() if origin != "default"}
    print("\n".join(as_yaml(values, origins)))
    for note in resolved.notes:
        print(f"# note: {note}")


@config_app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="Config file.")], as_json: Json = False
) -> None:
    """Check a config file by itself; exit 2 if a run would refuse it."""
    from rlcli.config.compare import without_settings
    from rlcli.config.files import find_file
    from rlcli.config.resolver import resolve
    from rlcli.setup.checks import check

    path = find_file(file, Path.cwd())
    env = without_settings(os.environ)
    resolved = check(resolve(flags={}, overrides=[], files=[path], env=env))
    if as_json:
        said = {"ok": True, "settings": len(resolved.explicit), "warnings": resolved.notes}
        print(json.dumps(said, ensure_ascii=False))
        return
    for note in resolved.notes:
        print(f"note: {note}")
    print(f"{path}: fine ({resolved.config.algorithm.name})")


@config_app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for people.")] = False,
) -> None:
    """Every setting as a JSON schema, for editors."""
    from rlcli.config.reference import settings_table
    from rlcli.config.schema import Config

    if markdown:
        print(settings_table())
        return
    print(json.dumps(Config.model_json_schema(), ensure_ascii=False, indent=1))


@config_app.command()
def diff(first: Name, second: Name, as_json: Json = False) -> None:
    """Settings in which two presets, files or runs differ."""
    print_differences(first, second, as_json=as_json)


@config_app.command()
@takes_run_options
def init(
    request: RunRequest,
    file: Annotated[Path, typer.Option("--file", help="File to write.")] = Path("rlcli.yaml"),
) -> None:
    """Write these settings into a file to edit."""
    from rlcli.config.compare import starter
    from rlcli.setup.checks import check

    write_new(file, starter(check(request.resolve())))
    print(f"{file}: use it with rlcli train --config {file}")


def write_new(file: Path, text: str) -> None:
    """Write a file that is not there yet. Raises: ConfigError."""
    from rlcli.errors import ConfigError

    try:
        with file.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} is there already. Move it, or choose another name.") from None
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}.") from None


def print_differences(first: str, second: str, *, as_json: bool) -> None:
    """Two configurations side by side, as columns or as JSON."""
    from rlcli.config.compare import differences, resolve_named
    from rlcli.config.resolved import show as shown
    from rlcli.setup.checks import check
    from rlcli.terminal.text import in_columns

    cwd = Path.cwd()
    rows = differences(*(check(resolve_named(name, cwd, os.environ)) for name in (first, second)))
    if as_json:
        print(json.dumps({key: [ours, theirs] for key, ours, theirs in rows}, ensure_ascii=False))
        return
    table = [("", first, second), *((key, shown(a), shown(b)) for key, a, b in rows)]
    if not rows:
        print("no difference")
        return
    print("\n".join(in_columns(table)))
