"""`rlcli data`."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlcli.cli.arguments import Json
from rlcli.config.schema import DataConfig
from rlcli.data.readers import Reading
from rlcli.data.rendering import ChatFormat
from rlcli.data.sets import repeat_notes
from rlcli.errors import ConfigError, DataError
from rlcli.hub import Hub

data_app = typer.Typer(help="Prepare and look at data.", no_args_is_help=True)
Field = Annotated[
    list[str] | None,
    typer.Option("--field", help="Our field and the column it is in: prompt=question. Repeatable."),
]
Tokens = Annotated[
    str | None,
    typer.Option("--tokens", help="Model whose chat template and tokenizer are used."),
]
HubName = Annotated[Hub, typer.Option("--hub", help="Hub to download from.")]
LIMIT = DataConfig().max_prompt_tokens
Template = Annotated[
    str | None,
    typer.Option(
        "--prompt-template", "--prompt_template", help="data.prompt_template, as in train."
    ),
]
System = Annotated[
    str | None,
    typer.Option("--system-prompt", "--system_prompt", help="data.system_prompt, as in train."),
]
DropLast = Annotated[
    bool | None,
    typer.Option(
        "--drop-last-assistant/--keep-last-assistant",
        "--drop_last_assistant/--keep_last_assistant",
        help="data.drop_last_assistant, as in train.",
    ),
]
SHOWN_ERRORS = 20
SHOWN_SOURCES = 8


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="gsm8k, math or humaneval.")],
    local_dir: Annotated[
        str | None, typer.Option(help="Folder to write into; none: ~/data/NAME.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="File or folder to convert; none: the hub.")
    ] = None,
    hub: HubName = "hf",
    as_json: Json = False,
) -> None:
    """Convert a public data set to train.parquet and test.parquet in verl's schema."""
    from rlcli.data.convert import convert

    report = convert(
        name,
        _path(source) if source else None,
        _path(local_dir or f"~/data/{name}"),
        hub=hub,
    )
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    for split, file in report["files"].items():
        print(f"{split}: {file['rows']} rows -> {file['path']}")


@data_app.command()
def check(
    files: Annotated[list[str], typer.Argument(help="Data files, as in --data.")],
    field: Field = None,
    tokens: Tokens = None,
    max_prompt_tokens: Annotated[
        int, typer.Option(help="Limit that --tokens compares prompts with.", min=1)
    ] = LIMIT,
    prompt_template: Template = None,
    system_prompt: System = None,
    drop_last_assistant: DropLast = None,
    hub: HubName = "hf",
    as_json: Json = False,
) -> None:
    """Read every row and list the bad ones; exit 2 if there is one.

    rows: those that can be used; dropped: those that cannot be read.
    """
    for text in files:
        if re.match(r"data\.[\w.]+=", text):
            raise ConfigError(
                f"rlcli data check takes options, not settings: {text}. Use --field, "
                "--prompt-template, --system-prompt or --drop-last-assistant."
            )
    reading = _reading(field, prompt_template, drop_last_assistant)
    chat = ChatFormat(system_prompt=_typed(system_prompt))
    tokenizer = _load_tokenizer(tokens, hub) if tokens else None
    try:
        report = _check(files, reading, chat, tokenizer=tokenizer, limit=max_prompt_tokens)
    except DataError as error:
        if not as_json:
            raise
        report = {"rows": 0, "dropped": 0, "errors": [str(error)], "notes": [], "tokens": None}
    if as_json:
        shown = {key: value for key, value in report.items() if key != "data_sources"}
        print(json.dumps(shown, ensure_ascii=False))
    else:
        print("\n".join(_report_lines(report)))
    if report["errors"]:
        raise typer.Exit(2)


@data_app.command()
def show(
    file: Annotated[str, typer.Argument(help="Data file, as in --data.")],
    n: Annotated[int, typer.Option("-n", help="Rows to show.", min=1)] = 3,
    field: Field = None,
    tokens: Tokens = None,
    prompt_template: Template = None,
    system_prompt: System = None,
    drop_last_assistant: DropLast = None,
    hub: HubName = "hf",
    as_json: Json = False,
) -> None:
    """The first rows as rlcli reads them; with --tokens also as the model sees them."""
    from rlcli.data.readers import read_scan

    scan = read_scan([file], _reading(field, prompt_template, drop_last_assistant))
    rows, notes = scan.rows[:n], scan.notes
    shown = [_shown_row(row) for row in rows]
    if tokens:
        from rlcli.data.prompts import prompt_tokens

        tokenizer = _load_tokenizer(tokens, hub)
        chat = ChatFormat(system_prompt=_typed(system_prompt))
        encoded, more = prompt_tokens(rows, tokenizer, chat)
        notes = [*notes, *more]
        for row, token_ids in zip(shown, encoded, strict=True):
            row["asked"] = tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
            row["tokens"] = len(token_ids)
    if as_json:
        print(json.dumps(shown, ensure_ascii=False, default=str))
        return
    for row in shown:
        print(json.dumps(row, ensure_ascii=False, indent=1, default=str))
    for note in notes:
        print(f"note: {note}")


def _path(text: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(text)))


def field_columns(given: Sequence[str] | None) -> dict[str, str]:
    fields: dict[str, str] = {}
    for text in given or ():
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            raise ConfigError(f"--field {text}: expected OURS=COLUMN, such as prompt=question.")
        fields[name] = column
    return fields


def _reading(
    field: Sequence[str] | None, template: str | None, drop_last_assistant: bool | None
) -> Reading:
    return Reading(
        fields=field_columns(field),
        template=_typed(template),
        drop_last_assistant=drop_last_assistant,
    )


def _typed(text: str | None) -> str | None:
    """`text` with the two characters `\\n` as a new line, as train reads them."""
    return None if text is None else text.replace("\\n", "\n")


def _load_tokenizer(model: str, hub: Hub) -> Any:
    from rlcli.hub import find_tokenizer

    folder = find_tokenizer(model, hub=hub)

    from rlcli.models.causal_lm import load_tokenizer

    return load_tokenizer(str(folder))


def _check(
    files: Sequence[str], reading: Reading, chat: ChatFormat, *, tokenizer: Any, limit: int
) -> dict[str, Any]:
    from rlcli.config.rewards import RewardConfig
    from rlcli.data.files import printable
    from rlcli.data.readers import scan_rows
    from rlcli.rewards import reference_problems
    from rlcli.rewards.rules import has_rule, text_only

    scan = scan_rows(files, reading)
    notes = [*scan.notes, *repeat_notes(scan.rows)]
    unknown = [row.data_source for row in scan.rows if not has_rule(row.data_source)]
    if unknown:
        notes.append(_no_rule(unknown))
    graded = [row for row in scan.rows if has_rule(row.data_source)]
    problems = [printable(problem) for problem in reference_problems(RewardConfig(), graded)]
    unread = [
        (row, text) for row in graded if (text := text_only(row.data_source, row.ground_truth))
    ]
    counted, refused = None, []
    if tokenizer is not None:
        from rlcli.data.prompts import token_counts

        counts, refused, more = token_counts(scan.rows, tokenizer, chat)
        notes += more
        counted = _summary(counts, limit=limit) if counts else None
    return {
        "rows": len(scan.rows),
        "dropped": len(scan.errors),
        "graded_by_a_rule": len(graded),
        "compared_as_text": [f"{row.id}: {printable(text, 60)}" for row, text in unread],
        "errors": [*scan.errors, *problems, *refused],
        "notes": notes,
        "tokens": counted,
        "data_sources": sorted({printable(row.data_source, 60) or "(none)" for row in scan.rows}),
    }


def _no_rule(data_sources: Sequence[str]) -> str:
    """How to train on rows that no built-in rule claims."""
    from rlcli.data.files import printable
    from rlcli.rewards.rules import RULES

    first = data_sources[0]
    rule = next((rule for rule in RULES if rule in re.split(r"[^a-z0-9_]+", first.lower())), None)
    name = f"data_source {printable(first, 60)!r}" if first else "no data_source"
    cure = f"--reward {rule}" if rule else f"--reward {'|'.join(RULES)}, or --reward FILE:FUNCTION"
    return (
        f"{len(data_sources)} rows have no built-in rule (first: {name}). Train with {cure}, or "
        "with a judge or a reward model."
    )


def _summary(counts: Sequence[int], *, limit: int) -> dict[str, int]:
    ordered = sorted(counts)
    p50, p95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
    over = sum(count > limit for count in ordered)
    return {"p50": p50, "p95": p95, "max": ordered[-1], "limit": limit, "over_limit": over}


def _report_lines(report: dict[str, Any]) -> list[str]:
    sources, errors, tokens = report["data_sources"], report["errors"], report["tokens"]
    shown = sources[:SHOWN_SOURCES] + ["..."] * (len(sources) > SHOWN_SOURCES)
    lines = [
        f"{report['rows']} rows; data_source: {', '.join(shown) or '(none)'}",
        f"{report['graded_by_a_rule']} rows have a built-in rule for their data_source",
    ]
    if report["graded_by_a_rule"] < report["rows"]:
        lines.append(
            "the other rows need --reward: a rule for all rows (--reward math) or your function "
            "(--reward file.py:function)"
        )
    if unread := report["compared_as_text"]:
        lines.append(
            f"{len(unread)} ground truths are compared as text only, because the rule math does "
            f"not read all of them: {unread[0]}"
        )
    if tokens:
        lines.append(
            f"prompt tokens: half have at most {tokens['p50']}, 95 % at most {tokens['p95']}, the "
            f"longest {tokens['max']}; {tokens['over_limit']} over "
            f"data.max_prompt_tokens={tokens['limit']}"
        )
    if report["dropped"]:
        lines.append(f"{report['dropped']} rows cannot be read")
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"bad row: {error}" for error in errors[:SHOWN_ERRORS]]
    if len(errors) > SHOWN_ERRORS:
        lines.append(f"... and {len(errors) - SHOWN_ERRORS} more; --json lists all")
    return lines


def _shown_row(row: Any) -> dict[str, Any]:
    prompt = row.prompt if isinstance(row.prompt, str) else [dict(m) for m in row.prompt]
    return {
        "id": row.id,
        "prompt": prompt,
        "ground_truth": row.ground_truth,
        "data_source": row.data_source,
        "extra_info": dict(row.extra_info),
    }
