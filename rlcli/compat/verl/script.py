"""The training command inside a shell script, read without running anything."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlcli.errors import ConfigError

OPTION = re.compile(r"--from[-_]script(?:=(.*))?", re.DOTALL)
_CONFIG_PATH = re.compile(r"--config[-_]path(?:=(.*))?", re.DOTALL)
_CONFIG_NAME = re.compile(r"--config[-_]name(?:=(.*))?", re.DOTALL)
VERL_MODULE = "verl.trainer.main_ppo"
_COMMAND = re.compile(r"main_ppo|rlcli[\w.]*\s+train|train\.sh")
_DECLARES = r"\s*(?:(?:export|declare|local|readonly)\s+(?:-\w+\s+)*)?"
_ASSIGNMENT = re.compile(rf"{_DECLARES}[A-Za-z_]\w*=")
_ARRAY = re.compile(rf"{_DECLARES}([A-Za-z_]\w*)(\+?)=\((.*)", re.DOTALL)
_ELEMENTS = re.compile(r'"\$\{(\w+)\[@\]\}"|\$\{(\w+)\[[@*]\]\}')
_CONTINUED = re.compile(r"\\[ \t]*(#.*)?$")
_WORD_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:(\w+|[@*#?])|\{(\w+|[@*])(?::?-([^}]*))?\})")
_ARGUMENTS = re.compile(r'"\$[@*]"|"\$\{[@*]\}"')
_RUNS = re.compile(r"\$\(|`")
_ENDS = ("|", "||", "&&", ";", "&")
_NO_START = ("echo", "printf", "chmod", "cp", "mv", "cat", "ls", "test", "[")
"""Commands that name a script without starting it."""
_REDIRECTS = re.compile(r"\d?[<>]|&>")
MAX_LISTED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptCommand:
    """One training command: its arguments, and the variables that are exported to it.

    problem: why it cannot be read; the rest is empty then.
    """

    line: int
    arguments: list[str]
    exports: dict[str, str]
    problem: str | None = None


def with_script(arguments: Sequence[str], env: MutableMapping[str, str]) -> list[str]:
    """`arguments` with the command of `--from-script FILE` in the option's place.

    `FILE:LINE` chooses among several commands. Variables the script exports go into `env`.

    Raises:
        ConfigError: no such file, no command in it or several, or a command that needs a shell.
    """
    given = [*arguments]
    for index, word in enumerate(given):
        match = OPTION.fullmatch(word)
        if match is None:
            continue
        inline = match.group(1)
        rest = given[index + 1 :]
        if inline is None and not rest:
            raise ConfigError("--from-script wants the name of a shell script.")
        name, after = (rest[0], rest[1:]) if inline is None else (inline, rest)
        command = script_command(name, env)
        nested = [word for word in command.arguments if OPTION.fullmatch(word)]
        if nested:
            raise ConfigError(
                f"--from-script {name}: its command in line {command.line} itself has "
                "--from-script.\nGive the script that this one names."
            )
        env.update(command.exports)
        return with_config_path([*given[:index], *command.arguments, *after])
    return with_config_path(given)


def with_config_path(arguments: Sequence[str]) -> list[str]:
    """`arguments` with hydra's `--config-path DIR --config-name NAME` as one `--config DIR/NAME`.

    Raises:
        ConfigError: a folder without the name of a file in it.
    """
    given = [*arguments]
    at = next((at for at, word in enumerate(given) if _CONFIG_PATH.fullmatch(word)), None)
    if at is None:
        return given
    folder, width = _option(given, at, _CONFIG_PATH)
    del given[at : at + width]
    for index, word in enumerate(given):
        if not _CONFIG_NAME.fullmatch(word):
            continue
        name, width = _option(given, index, _CONFIG_NAME)
        if folder and name:
            given[index : index + width] = ["--config", str(Path(folder) / name)]
            return given
    raise ConfigError(
        "--config-path wants a folder, and --config-name a file in it. "
        "Write --config DIR/NAME.yaml."
    )


def _option(words: Sequence[str], at: int, option: re.Pattern[str]) -> tuple[str, int]:
    """(value of the option at `at`, how many words the two take)."""
    match = option.fullmatch(words[at])
    inline = match.group(1) if match else None
    return (inline, 1) if inline is not None else (" ".join(words[at + 1 : at + 2]), 2)


def script_command(name: str, env: Mapping[str, str]) -> ScriptCommand:
    """The training command of script `name` (FILE or FILE:LINE). Raises: see `with_script`."""
    path, line = _split_name(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text file"
        raise ConfigError(f"--from-script {name}: cannot read it: {reason}.") from None
    commands = read_script(text, env, name=str(path))
    commands = [command for command in commands if command.problem is None] or commands[:1]
    chosen = [command for command in commands if line in (None, command.line)]
    if len(chosen) == 1 and chosen[0].problem:
        raise ConfigError(chosen[0].problem)
    if len(chosen) == 1:
        return chosen[0]
    if not commands:
        raise ConfigError(
            f"--from-script {name}: no training command in it.\n"
            f"Expected python3 -m {VERL_MODULE} ..., rlcli train ... or ./train.sh ..."
        )
    lines = [*dict.fromkeys(str(command.line) for command in commands)]
    if len(lines) == 1 or (line is not None and chosen):
        raise ConfigError(
            f"--from-script {name}: line {(chosen or commands)[0].line} holds "
            f"{len(chosen or commands)} training commands.\nWrite each on a line of its own."
        )
    more = f" and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    raise ConfigError(
        f"--from-script {name}: commands start in lines {', '.join(lines[:MAX_LISTED])}{more}.\n"
        f"Choose one: {path}:LINE."
    )


def _split_name(name: str) -> tuple[Path, int | None]:
    head, colon, tail = name.rpartition(":")
    if colon and tail.isascii() and tail.isdigit():
        return Path(os.path.expanduser(head)), int(tail)
    return Path(os.path.expanduser(name)), None


def read_script(text: str, env: Mapping[str, str], *, name: str) -> list[ScriptCommand]:
    """Every training command in a script's `text`, with the script's own variables filled in."""
    reading = _Reading(known=dict(env))
    for number, line in _logical_lines(text):
        is_command = _COMMAND.search(line) is not None
        array = _ARRAY.match(line)
        if not (is_command or array or _ASSIGNMENT.match(line)):
            continue
        where = f"{name}:{number}"
        try:
            if array:
                reading.take_array(array, where)
                continue
            words = _words(
                line, reading.known, where=where, unknown=reading.unknown, strict=is_command
            )
        except ConfigError as error:
            found = ScriptCommand(line=number, arguments=[], exports={}, problem=str(error))
            reading.commands += [found] if is_command else []
        except _NeedsShell:
            assigned = _WORD_ASSIGNMENT.findall(line.removeprefix("export "))[:1]
            reading.unknown.update(name for name, _ in assigned)
        else:
            for part in _parts(words):
                reading.take(part, number)
    return reading.commands


@dataclass(slots=True, kw_only=True)
class _Reading:
    """What a script said so far. An array's elements stand under `NAME[@]`, quoted for a shell."""

    known: dict[str, str]
    exports: dict[str, str] = field(default_factory=dict[str, str])
    unknown: set[str] = field(default_factory=set[str])
    commands: list[ScriptCommand] = field(default_factory=list[ScriptCommand])

    def take(self, words: Sequence[str], line: int) -> None:
        """One command: it trains, or sets variables, or does not matter."""
        before, after = _split_command(words)
        exported = {} if after is None else dict(self.exports)
        for word in before:
            match = _WORD_ASSIGNMENT.fullmatch(word)
            if match is None:
                continue
            self.known[match.group(1)] = match.group(2)
            if after is not None:
                exported[match.group(1)] = match.group(2)
            elif before[0] == "export":
                self.exports[match.group(1)] = match.group(2)
        if after is not None:
            self.commands.append(ScriptCommand(line=line, arguments=after, exports=exported))

    def take_array(self, array: re.Match[str], where: str) -> None:
        """`NAME=(...)`, or `NAME+=(...)`. Raises: ConfigError, _NeedsShell."""
        name, adds, body = array.groups()
        elements = f"{name}[@]"
        self.unknown.add(elements)
        words = _words(body, self.known, where=where, unknown=self.unknown, strict=False)
        words[-1:] = [word for word in [words[-1].rstrip(";").removesuffix(")")] if word]
        self.unknown.discard(elements)
        before = self.known.get(elements, "") if adds else ""
        self.known[elements] = f"{before} {shlex.join(words)}".strip()
        self.known[name] = next(iter(shlex.split(self.known[elements])), "")


class _NeedsShell(Exception):  # no error: such an assignment only matters if it is used
    """The value is the output of a command."""


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, text) with continued lines and open quotes joined."""
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        first = index
        line = lines[index]
        while _CONTINUED.search(line) and index + 1 < len(lines):
            index += 1
            line = _CONTINUED.sub(" ", line) + lines[index]
        line = _CONTINUED.sub("", line)
        if _COMMAND.search(line) or _ASSIGNMENT.match(line) or _ARRAY.match(line):
            while _is_open(line) and index + 1 < len(lines):
                index += 1
                line = f"{line}\n{lines[index]}"
        index += 1
        yield first + 1, line


def _is_open(line: str) -> bool:
    """Whether a quote, or the bracket of an array, goes on in the next line."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return True
    return bool(_ARRAY.match(line)) and not words[-1].rstrip(";").endswith(")")


def _words(
    line: str, known: Mapping[str, str], *, where: str, unknown: set[str], strict: bool
) -> list[str]:
    """`line` as bash would split it, variables filled in."""
    if _RUNS.search(line):
        if strict:
            raise ConfigError(
                f"{where}: the command uses $(...) or `...`, and rlcli runs nothing of a script.\n"
                "Write its result there instead."
            )
        raise _NeedsShell
    try:
        return shlex.split(_filled(line, known, where, unknown, strict=strict), comments=True)
    except ValueError as error:
        raise ConfigError(f"{where}: cannot read this line: {error}.") from None


def _filled(
    line: str, known: Mapping[str, str], where: str, unknown: set[str], *, strict: bool
) -> str:
    """`line` with variables replaced, quoted so that splitting keeps their values."""
    line = _ARGUMENTS.sub("", line)
    filled: list[str] = []
    quote = ""
    index = 0
    while index < len(line):
        character = line[index]
        elements = _ELEMENTS.match(line, index) if quote != "'" else None
        if elements and not (quote and elements.group(1)):
            text = _elements(elements, known, where, unknown, strict=strict)
            filled.append(_escaped(" ".join(shlex.split(text))) if quote else text)
            index = elements.end()
            continue
        match = _VARIABLE.match(line, index) if quote != "'" else None
        if character == "\\" and quote != "'":
            # shlex knows no escaped $ inside double quotes
            keeps = not (quote and line[index + 1 : index + 2] in ("$", "`"))
            filled.append(line[index if keeps else index + 1 : index + 2])
            index += 2
            continue
        if match:
            value = _value(match, known, where, unknown, strict=strict)
            filled.append(_escaped(value) if quote else " ".join(map(shlex.quote, value.split())))
            index = match.end()
            continue
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        filled.append(character)
        index += 1
    return "".join(filled)


def _elements(
    match: re.Match[str], known: Mapping[str, str], where: str, unknown: set[str], *, strict: bool
) -> str:
    name = f"{match.group(1) or match.group(2)}[@]"
    if name in known and name not in unknown:
        return known[name]
    if not strict:
        return ""
    raise ConfigError(
        f"{where}: the command uses ${{{name}}}, an array that rlcli cannot read from the script.\n"
        "Write its words there instead."
    )


def _escaped(value: str) -> str:
    return re.sub(r'([\\"])', r"\\\1", value)


def _value(
    match: re.Match[str], known: Mapping[str, str], where: str, unknown: set[str], *, strict: bool
) -> str:
    name = match.group(1) or match.group(2)
    if name in known and name not in unknown:
        return known[name] or match.group(3) or ""
    if match.group(3) is not None:
        return match.group(3)
    if name in "@*#?" or name.isdigit() or not strict:
        return ""
    raise ConfigError(
        f"{where}: the command uses ${name}, which neither the script nor the environment sets.\n"
        f"Set it first: {name}=... rlcli train --from-script ..."
    )


def _parts(words: Sequence[str]) -> Iterator[list[str]]:
    """The commands of one line."""
    part: list[str] = []
    for word in words:
        if word not in _ENDS:
            part.append(word.removesuffix(";"))
        if word in _ENDS or word.endswith(";"):
            yield part
            part = []
    yield part


def _split_command(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """(words before the program, its arguments); (words, None) when nothing here trains."""
    for index, word in enumerate(words):
        begins = words[0] not in _NO_START and (
            (word == VERL_MODULE and words[index - 1 : index] == ["-m"])
            or word.endswith("verl/trainer/main_ppo.py")
            or Path(word).name == "train.sh"
            or (word == "train" and index > 0 and "rlcli" in words[index - 1])
        )
        if begins:
            return [*words[:index]], _until_redirection(words[index + 1 :])
    return [*words], None


def _until_redirection(words: Sequence[str]) -> list[str]:
    ends = (index for index, word in enumerate(words) if _REDIRECTS.match(word))
    return [*words[: next(ends, len(words))]]
