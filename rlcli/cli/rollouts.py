"""`rlcli rollouts`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlcli.cli.arguments import Json, RunArgument
from rlcli.terminal.text import WIDTH

if TYPE_CHECKING:
    from rlcli.run_dir.rollout_files import Which

rollouts_app = typer.Typer(help="What the policy wrote.", no_args_is_help=True)


@rollouts_app.callback()
def _group() -> None:
    """What the policy wrote."""


@rollouts_app.command()
def view(
    run: RunArgument,
    step: Annotated[int | None, typer.Option(help="Step, from 1; none: the newest.")] = None,
    worst: Annotated[bool, typer.Option("--worst", help="Lowest rewards first.")] = False,
    best: Annotated[bool, typer.Option("--best", help="Highest rewards first.")] = False,
    zero: Annotated[bool, typer.Option("--zero", help="Only reward 0.")] = False,
    truncated: Annotated[
        bool, typer.Option("--truncated", help="Only those cut by the length limit.")
    ] = False,
    n: Annotated[int, typer.Option("-n", min=1, help="Rollouts to show.")] = 5,
    as_json: Json = False,
) -> None:
    """Prompts, responses and rewards of one step."""
    from rlcli.run_dir.folder import find_run
    from rlcli.run_dir.rollout_files import pick, read_rollouts, rollout_file, step_of_file

    which = _which({"worst": worst, "best": best, "zero": zero, "truncated": truncated})
    file = rollout_file(find_run(run, Path.cwd()), step)
    rows = read_rollouts(file)
    found = pick(rows, which)
    number = step_of_file(file)
    if as_json:
        said = {"step": number, "rows": len(rows), "found": len(found), "rollouts": found[:n]}
        # ascii: the control characters of 8-bit terminals, too, come out escaped
        print(json.dumps(said))
        return
    words = "" if which == "first" else f"; {which}: {len(found)}"
    print(f"step {number}: {len(rows)} rollouts{words}")
    width = shutil.get_terminal_size().columns
    for row in found[:n]:
        print("\n".join(["", *rollout_lines(row, width)]))


def _which(asked: dict[str, bool]) -> Which:
    from rlcli.errors import UsageError

    names: list[Any] = [name for name, is_asked in asked.items() if is_asked]
    if len(names) > 1:
        both = " and ".join(f"--{name}" for name in names)
        raise UsageError(f"{both} cannot be shown together. Give one of them.")
    return names[0] if names else "first"


def rollout_lines(row: dict[str, Any], width: int = WIDTH) -> list[str]:
    """One rollout; an episode as a dialogue."""
    reward = row.get("reward")
    worth = f"{reward:.6g}" if isinstance(reward, int | float) else "none"
    head = f"#{row['row']} {row.get('id', '')}  reward {worth}"
    parts = ", ".join(f"{k} {v:.6g}" for k, v in (row.get("parts") or {}).items())
    from rlcli.run_dir.rollout_files import ENDS

    ended = ENDS.get(row.get("finish_reason", ""), "ended")
    length = f"{row.get('length', '?')} tokens, {ended}"
    turns = [f"{row['turns']} turns"] if row.get("turns") else []
    facts = [head, *([f"({parts})"] if parts else []), *turns, length]
    lines = _chopped("  ".join(facts), width, "")
    for label in ("prompt", "response", "ground_truth", "reason", "error"):
        if label == "response" and row.get("dialogue"):
            lines += _dialogue(row["dialogue"], width)
        elif row.get(label) is not None:
            value = row[label]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines += [f"{label.replace('_', ' ')}:", *_chopped(text, width, "  ")]
    return lines


def _dialogue(messages: list[dict[str, Any]], width: int) -> list[str]:
    """The turns of an episode: the policy's, and with a bar the environment's.

    On a terminal the environment's are dim.
    """
    dim, plain = ("\x1b[2m", "\x1b[0m") if _has_styles() else ("", "")
    lines: list[str] = []
    for message in messages:
        role = str(message.get("role", ""))
        is_own = role == "assistant"
        name = f" {message['name']}" if message.get("name") else ""
        indent = "  " if is_own else "  | "
        text = _chopped(str(message.get("content", "")), width, indent)
        shown = [*_chopped(f"{role}{name}:", width, ""), *text]
        lines += shown if is_own else [f"{dim}{line}{plain}" for line in shown]
    return lines


def _has_styles() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _chopped(text: str, width: int, indent: str) -> list[str]:
    """All of what a model wrote, blanks included, in lines of at most `width` columns."""
    from rich.cells import chop_cells

    from rlcli.run_dir.rollout_files import printable

    room = max(20, width - len(indent))
    lines: list[str] = []
    for line in printable(text).expandtabs(4).split("\n"):
        lines += [indent + part for part in chop_cells(line, room) or [""]]
    return lines
