"""A wrong command line in one or two lines: what was found, the nearest name, where to look."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import typer

from rlcli.config.names import translate
from rlcli.config.peer_names import as_option, nearest, settings_for
from rlcli.terminal.i18n import width

UsageProblem: Any = typer.BadParameter.__mro__[2]
"""click's ClickException, which typer has under a name of its own since 0.29."""

CLOSE_OPTION: Final = 0.8
"""difflib ratio from which an option is offered; --modle is 0.86 from --model."""
LANGUAGE: Final = ("--lang=en", "--lang=zh")
NARROWEST: Final = 20
"""Columns that 80 leave for the help of an option, where names and kinds are long."""


def translated(command: Any, say: Callable[[str], str], above: Any = None) -> Any:
    """`command` with its help, and that of the commands below it, as `say` puts it."""
    context = command.context_class(command, parent=above, **command.context_settings)
    command.help = say(command.help or "") or None
    command.rich_help_panel = say("Commands")
    for parameter in command.get_params(context):
        is_argument = parameter.param_type_name == "argument"
        title = parameter.rich_help_panel or ("Arguments" if is_argument else "Options")
        parameter.rich_help_panel = say(title)
        parameter.help = _breakable(say(parameter.help or "")) or None
    for below in getattr(command, "commands", {}).values():
        translated(below, say, context)
    return command


def _breakable(text: str) -> str:
    """Long Chinese with places to break it: rich (15.0) cuts off what has none."""
    return text if width(text) <= NARROWEST else re.sub(r"([；：，、。])(?=\S)", r"\1 ", text)


def without_language(words: Sequence[str], command: Any) -> list[str]:
    """`words` without --lang where the command they name has no settings: it has done its work."""
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    if any("--lang" in parameter.opts for parameter in command.params):
        return [*words]
    pairs = zip(words, [*words[1:], ""], ["", *words], strict=False)
    return [
        word
        for word, after, before in pairs
        if not (word in LANGUAGE or (word == "--lang" and f"--lang={after}" in LANGUAGE))
        and not (before == "--lang" and f"--lang={word}" in LANGUAGE)
    ]


def usage_message(problem: Any, words: Sequence[str]) -> str:
    """What stderr gets for `problem` in `words`; for a bare group of commands its help."""
    context = problem.ctx if hasattr(problem, "ctx") else None
    message = problem.format_message()
    if type(problem).__name__ == "NoArgsIsHelpError":
        return message
    command = context.command_path if context else "rlcli"
    option = getattr(problem, "option_name", None)
    if option and message.startswith("No such option"):
        option = _as_typed(option, words)
        hint = _nearest_option(option, context)
        return f"error: {command} has no option {option}.{hint} See {command} --help."
    if message.startswith("No such command"):
        name = message.split("'")[1]
        known = sorted(getattr(context.command, "commands", {})) if context else []
        close = difflib.get_close_matches(name, known, n=2)
        hint = f"Nearest: {', '.join(close)}" if close else f"There are {', '.join(known)}"
        return f"error: {command} has no command {name}. {hint}."
    first = " ".join(message.split())
    return f"error: {command}: {first.rstrip('.')}. See {command} --help."


def _as_typed(option: str, words: Sequence[str]) -> str:
    """`option` as the user wrote it; click shortens -algo to -a and turns _ into -."""
    for word in words:
        typed = word.partition("=")[0]
        is_same = typed.replace("_", "-") == option
        if is_same or (not option.startswith("--") and word.startswith(option) and len(word) > 2):
            return typed
    return option


def _nearest_option(option: str, context: Any) -> str:
    """Hint for an unknown `option`: the most similar option or setting; empty if there is none."""
    name = option.lstrip("-").replace("-", "_")
    parameters = context.command.params if context else []
    takes_settings = any(parameter.name == "overrides" for parameter in parameters)
    if takes_settings and "." in name and translate(name) is not None:
        return f" Settings are written without dashes: {name}=VALUE."
    known = [
        spelling.replace("-", "_").replace("__", "--", 1)
        for parameter in parameters
        for spelling in (*parameter.opts, *parameter.secondary_opts)
        if spelling.startswith("--")
    ]
    close = difflib.get_close_matches(f"--{name}", known, n=2, cutoff=CLOSE_OPTION)
    if takes_settings and (meant := settings_for(name)):
        typed = [as_option(key) for key in meant]
        if len(typed) == 1:
            return f" Use {typed[0]}."
        return f" Related: {', '.join(typed)}."
    if close:
        return f" Nearest: {', '.join(close)}."
    key = nearest(name) if takes_settings else None
    return f" Nearest: {as_option(key)}." if key else ""
