"""The one resolver: defaults, presets, files, environment, flags and overrides, with origins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from rlcli.compat.verl.keys import ESTIMATOR_KEY
from rlcli.config import files as config_files
from rlcli.config.algorithm_selection import Choice, Selection, algorithm_preset, select_algorithm
from rlcli.config.names import (
    ADDRESS_KEYS,
    ENV_KEYS,
    FLAG_KEYS,
    PROMPT_KEYS,
    REFUSED,
    REMARKS,
    Unused,
    first_inside,
    full_name,
    translate,
)
from rlcli.config.peer_names import suggestion
from rlcli.config.presets import Preset, load_preset
from rlcli.config.resolved import Resolved, show
from rlcli.config.schema import Config, defaults
from rlcli.config.settings import Level, Setting, describe, fit, merge, resolve_references
from rlcli.config.value_parsing import expand, flatten, one_line, parse_value, plain_text
from rlcli.config.verl_semantics import (
    VAL,
    is_from_run,
    resolve_clip,
    resolve_function,
    resolve_kl,
    resolve_validation,
)
from rlcli.errors import ConfigError

MAX_ERROR_LINES = 3
NAME_KEY = "algorithm.name"
REWARD_KEY = "reward.fn"
_LOGIN = re.compile(r"\s*(?:[\w.+-]+:)?//[^/?#]*@")


@dataclass(slots=True, kw_only=True)
class _Reader:
    """What the sources said so far, in our keys."""

    env: Mapping[str, str]
    settings: list[Setting] = field(default_factory=list[Setting])
    choices: list[Choice] = field(default_factory=list[Choice])
    unused: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    unknown: list[str] = field(default_factory=list[str])
    remarks: list[str] = field(default_factory=list[str])

    def read(
        self, name: str, value: Any, origin: str, level: Level, *, text: str | None = None
    ) -> None:
        """Take in one setting under the name the user gave it."""
        key = translate(name)
        full = full_name(name)
        if key in PROMPT_KEYS:
            self._read_prompt(str(key), value, origin, level)
            return
        value = expand(value, self.env)
        if key in ADDRESS_KEYS and isinstance(value, str) and _LOGIN.match(value):
            raise ConfigError(_login(name, origin))
        if isinstance(value, dict):
            for entry, item in self._flat(name, cast("dict[str, Any]", value), origin).items():
                self.read(entry, item, origin, level)
        elif key in (ESTIMATOR_KEY, NAME_KEY):
            is_estimator = key == ESTIMATOR_KEY
            choice = Choice(name=str(value), level=level, origin=origin, estimator=is_estimator)
            self.choices.append(choice)
        elif isinstance(key, Unused):
            said = origin if level in (Level.ENV, Level.FLAG) else name.lstrip("+")
            self.unused.setdefault(key.reason, []).append(said)
        elif key is None and value is None and first_inside(full):
            return  # a section with nothing in it
        elif key is None:
            self.unknown.append(_unknown(name, full, origin))
        else:
            if full in REMARKS:
                self.remarks.append(REMARKS[full])
            text = None if text is None else str(expand(plain_text(text), self.env))
            self.settings.append(
                Setting(key=key, value=value, origin=origin, level=level, text=text)
            )

    def _flat(self, name: str, value: dict[str, Any], origin: str) -> dict[str, Any]:
        """Raises: ConfigError that says where a key given twice comes from."""
        try:
            return flatten(value, f"{name}.")
        except ConfigError as error:
            raise ConfigError(f"{error} (from {origin})") from None

    def _read_prompt(self, key: str, value: Any, origin: str, level: Level) -> None:
        """A prompt is taken as it is; a backslash and an n typed in a shell are a new line."""
        if isinstance(value, str) and level >= Level.ENV and "\\n" in value:
            value = value.replace("\\n", "\n")
            self.remarks.append(f"{origin.partition('=')[0]}: \\n became a new line.")
        self.settings.append(Setting(key=key, value=value, origin=origin, level=level))


def _login(name: str, origin: str) -> str:
    """What to say of an address with a password in it, without the password."""
    said = one_line(name) if "=" in origin else f"{one_line(name)} (from {origin})"
    return (
        f"{said} has a user name or password in its address, and a run writes its settings down.\n"
        "Remove what stands before the @. A judge's key comes from the environment, e.g. "
        "OPENAI_API_KEY."
    )


def _unknown(name: str, full: str, origin: str) -> str:
    typed = origin.removeprefix("override ")
    said = typed if typed != origin else f"{one_line(name)} (from {origin})"
    if full in REFUSED:
        return f"{said} is not supported: {REFUSED[full]}."
    inside = first_inside(full)
    if inside:
        return f"{said}: {full} is a section of settings. Name one of them, such as {inside}."
    return f"unknown setting {said}.{suggestion(name)}"


def resolve(
    *,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
    files: Sequence[Path],
    env: Mapping[str, str],
    algo: str | None = None,
    preset: str | None = None,
    ignore_unsupported: bool = False,
    cwd: Path | None = None,
) -> Resolved:
    """The configuration of a run, where each value came from, and what to tell the user.

    flags: option name of FLAG_KEYS to value; None is not given. overrides: `key=value` as typed.
    From low to high: defaults, algorithm preset, recipe, files in order, env, overrides, flags.

    Raises:
        ConfigError: an unknown or malformed setting, a file or preset that is not there, or
            settings that contradict each other.
    """
    _refuse_blank({"algo": algo, "preset": preset} | dict(flags))
    reader = _Reader(env=env)
    here = cwd if cwd is not None else Path.cwd()
    recipe = _read_presets(reader, algo, preset)
    dumps = _read_files(reader, files, here)
    _read_env(reader, env)
    _read_overrides(reader, overrides)
    _read_flags(reader, flags)
    if reader.unknown and not ignore_unsupported:
        raise ConfigError(_three_lines(reader.unknown))
    selection = _select(reader)
    winners, notes = _weigh(reader, selection, recipe, dumps)
    for note in (
        resolve_function(winners),
        resolve_validation(winners, reader.settings, dumps),
    ):
        notes += [note] if note else []
    found = _reward_function(winners, here)
    if found is not None:
        winners[REWARD_KEY] = found
        path = (here / found.value).resolve()
        notes.append(
            f"using {path} as the reward (found automatically). To use another: --reward "
            "FILE.py:FUNCTION, or --reward rules for the built-in ones."
        )
    winners = {key: fit(setting) for key, setting in resolve_references(winners).items()}
    resolved = Resolved(
        config=_validate(winners),
        sources={key: winners[key].origin for key in defaults()},
        notes=notes,
        explicit=frozenset(key for key, setting in winners.items() if setting.is_explicit),
    )
    return resolve_kl(resolve_clip(resolved, winners), winners)


def _refuse_blank(options: Mapping[str, Any]) -> None:
    """Raises: ConfigError for an option whose value is empty, as of a variable that is not set."""
    for option, given in options.items():
        words = cast("list[Any]", given if isinstance(given, list) else [given])
        if FLAG_KEYS.get(option) not in PROMPT_KEYS and any(
            isinstance(word, str) and not word.strip() for word in words
        ):
            raise ConfigError(f"--{option} has no value. Leave it out, or give it one.")


def _read_presets(reader: _Reader, algo: str | None, name: str | None) -> Preset | None:
    """The recipe, its settings read; an algorithm preset becomes a choice like --algo."""
    if algo:
        reader.choices.append(Choice(name=algo, level=Level.FLAG, origin="flag --algo"))
    if not name:
        return None
    preset = load_preset(name, origin="flag --preset")
    if preset.kind == "algorithm":
        if algo and algorithm_preset(algo) != preset.name:
            raise ConfigError(f"--algo {algo} and --preset {name} are both algorithms. Keep one.")
        choice = Choice(name=preset.name, level=Level.FLAG, origin="flag --preset")
        reader.choices.append(choice)
        return None
    for key, value in preset.settings.items():
        reader.read(key, value, f"recipe {preset.name}", Level.RECIPE)
    return preset


def _read_files(reader: _Reader, files: Sequence[Path], cwd: Path) -> set[str]:
    """Read all files; returns the origins of those that a run wrote (its config.json)."""
    dumps: set[str] = set()
    for name, settings in config_files.local_settings(cwd):
        for key, value in settings.items():
            reader.read(key, value, f"file {name}", Level.FILE)
        reader.remarks.append(f"{name} in this directory is read.")
    for named in files:
        for path, settings in config_files.load_config_file(config_files.find_file(named, cwd)):
            origin = f"file {path.relative_to(cwd) if path.is_relative_to(cwd) else path}"
            config_files.refuse_repeats(origin.removeprefix("file "), settings, translate)
            if config_files.is_resolved_config(settings):
                dumps.add(origin)
            for key, value in settings.items():
                reader.read(key, value, origin, Level.FILE)
    return dumps


def _read_env(reader: _Reader, env: Mapping[str, str]) -> None:
    for name, key in ENV_KEYS.items():
        text = env.get(name, "").strip()
        if name == "NNODES" and ":" in text:
            least, _, text = text.partition(":")
            value = _parsed(least, f"env {name}")
            reader.read("train.min_nodes", value, f"env {name}", Level.ENV, text=least)
        if text:
            value = _parsed(text, f"env {name}")
            reader.read(key, value, f"env {name}", Level.ENV, text=text)


def _parsed(text: str, origin: str) -> Any:
    """Raises: ConfigError that says where `text`, which cannot be read, comes from."""
    try:
        return parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _read_overrides(reader: _Reader, overrides: Sequence[str]) -> None:
    for override in overrides:
        name, equals, text = (part.strip() for part in override.partition("="))
        if not override.strip():
            reader.remarks.append(
                "an empty argument was left out: a backslash followed by blanks ends a command, "
                "and the lines after it do not reach rlcli."
            )
        elif name.startswith("~") or not equals or not name:
            raise ConfigError(_stray(override))
        elif full_name(name) in PROMPT_KEYS:
            value = _parsed(text, name) if text[:1] in ("'", '"', "[") else text
            reader.read(name, value, f"override {name}=...", Level.OVERRIDE)
        elif not plain_text(text):
            name = one_line(name)
            raise ConfigError(f"{name}= has no value. Leave it out, or write {name}=null.")
        else:
            value = _parsed(text, one_line(name))
            origin = one_line(f"override {name}={plain_text(text)}")
            reader.read(name, value, origin, Level.OVERRIDE, text=text)


def _stray(word: str) -> str:
    """What to say of an argument that is neither an option nor key=value."""
    if word.lower() in ("true", "false", "yes", "no", "on", "off"):
        return (
            f"found {word!r} by itself: options that are on or off take no value. Write "
            "--use_api_reward, or --no_use_api_reward; settings look like lora.rank=8."
        )
    return (
        f"expected key=value, found {word!r:.80}. Settings look like train.lr=1e-6; "
        "options start with --."
    )


def _read_flags(reader: _Reader, flags: Mapping[str, Any]) -> None:
    for flag, given in flags.items():
        is_list = isinstance(given, str) and given[:1] == "[" and FLAG_KEYS[flag] not in PROMPT_KEYS
        value = _parsed(given, f"flag --{flag}") if is_list else given
        if value is not None and value != []:
            text = given if isinstance(given, str) else None
            reader.read(FLAG_KEYS[flag], value, f"flag --{flag}", Level.FLAG, text=text)


def _select(reader: _Reader) -> Selection:
    scale = [item for item in reader.settings if item.key == "algorithm.scale_by_std"]
    winner = merge(scale).get("algorithm.scale_by_std")
    scale_by_std = winner is None or str(winner.value).lower() not in ("false", "no", "off", "0")
    return select_algorithm(reader.choices, scale_by_std=scale_by_std)


def _weigh(
    reader: _Reader, selection: Selection, recipe: Preset | None, dumps: set[str]
) -> tuple[dict[str, Setting], list[str]]:
    """(settings, notes)."""
    preset = selection.preset
    lower = [
        Setting(key=key, value=value, origin="default", level=Level.DEFAULT)
        for key, value in defaults().items()
    ]
    lower += [
        Setting(key=key, value=value, origin=f"preset {preset.name}", level=Level.ALGORITHM)
        for key, value in preset.settings.items()
    ]
    user = [item for item in reader.settings if item.is_explicit]
    lower += [item for item in reader.settings if not item.is_explicit]
    base = merge(lower)
    user = [
        item
        for item in user
        if item.origin not in dumps or _is_val_of_run(item) or not _is_default(item, base)
    ]
    user.append(_named(selection, NAME_KEY, preset.name))
    if selection.advantage is not None:
        user.append(_named(selection, "algorithm.advantage", selection.advantage))
    winners = merge([*lower, *user])
    return winners, _notes(reader, selection, recipe, winners)


def _named(selection: Selection, key: str, value: str) -> Setting:
    return Setting(key=key, value=value, origin=selection.origin, level=selection.level)


def _is_val_of_run(setting: Setting) -> bool:
    """Whether this is the validation data of a run: it is kept when the run is resumed."""
    return setting.key == VAL and is_from_run(setting)


def _is_default(setting: Setting, base: Mapping[str, Setting]) -> bool:
    """Whether a setting repeats its default, as most in a run's config.json do."""
    present = base.get(setting.key)
    return present is not None and present.value == setting.value


def _notes(
    reader: _Reader, selection: Selection, recipe: Preset | None, winners: Mapping[str, Setting]
) -> list[str]:
    notes = [*selection.notes]
    if selection.preset.note:
        notes.append(selection.preset.note)
    wanted = recipe.settings.get(NAME_KEY) if recipe else None
    if recipe and wanted not in (None, selection.preset.name):
        notes.append(
            f"recipe {recipe.name} is made for {wanted}; this run uses {selection.preset.name} "
            f"(from {selection.origin})."
        )
    for item in reader.settings:
        winner = winners.get(item.key)
        if winner and winner.level is Level.FLAG and item.level is Level.OVERRIDE:
            beaten = item.origin.removeprefix("override ")
            notes.append(f"{winner.origin} {show(winner.value)} beats {beaten}.")
    notes += [f"not used: {', '.join(names)} ({why})." for why, names in reader.unused.items()]
    notes += [f"ignored: {problem}" for problem in reader.unknown]
    return list(dict.fromkeys([*notes, *reader.remarks]))


def _reward_function(winners: Mapping[str, Setting], cwd: Path) -> Setting | None:
    """The guides' common/reward_functions.py, when nothing else names a reward."""
    scored = winners["reward.judge.enabled"].value is True or winners["reward.model"].value
    mixed = any(
        winners[key].value is True for key in ("reward.composite", "reward.judge.rule_first")
    )
    if winners[REWARD_KEY].level is not Level.DEFAULT or (scored and not mixed):
        return None
    function = config_files.reward_function_here(cwd)
    if function is None:
        return None
    origin = f"file {function.partition(':')[0]}"
    return Setting(key=REWARD_KEY, value=function, origin=origin, level=Level.FILE)


def _validate(winners: Mapping[str, Setting]) -> Config:
    tree: dict[str, Any] = {}
    for key, setting in winners.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = setting.value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for item in error.errors(include_url=False):
            path = ".".join(str(part) for part in item["loc"])
            key = next(name for name in winners if f"{path}.".startswith(f"{name}."))
            problems.setdefault(key, f"{describe(winners[key])}: {_expected(item['msg'])}.")
        raise ConfigError(_three_lines([*problems.values()])) from None


def _expected(message: str) -> str:
    return message.replace("Input should be", "expected").partition(", unable to")[0]


def _three_lines(problems: Sequence[str]) -> str:
    if len(problems) <= MAX_ERROR_LINES:
        return "\n".join(problems)
    left = len(problems) - MAX_ERROR_LINES + 1
    return "\n".join([*problems[: MAX_ERROR_LINES - 1], f"... and {left} more like these."])
