"""Option names of TRL, Hugging Face, ms-swift, OpenRLHF and LLaMA-Factory, and our settings.

Also the closest name for a mistyped one.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import yaml

from rlcli.compat.verl.keys import NOT_USED
from rlcli.config.names import ALIASES, FLAG_KEYS, SHORT_FORMS
from rlcli.config.schema import defaults

CLOSE: Final = 0.86
"""Smallest difflib ratio at which one name is suggested for another (0.8 for lrr and lr)."""
CLOSE_IF_SHORT: Final = 0.8
SHORT_NAME: Final = 4
"""Longest name, in characters, to which CLOSE_IF_SHORT applies: one letter weighs more in it."""

OTHER_MODELS: Final = frozenset({"critic", "ref", "reward", "reward_model", "eval", "teacher"})
"""Sections of models other than the policy: critic.optim.x is not train.x."""


@cache
def peer_names() -> dict[str, list[str]]:
    """Each setting with its names in other trainers, those of broader settings included."""
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


@cache
def _settings_by_name() -> dict[str, tuple[str, ...]]:
    """Name, joined by underscores and without sections, to the settings it may mean."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for key in defaults():
        section, _, last = key.rpartition(".")
        for name in (key, f"{section}_{last}", last):
            found[name.replace(".", "_")].append(key)
    settings = {name: keys for name, keys in found.items() if len(set(keys)) == 1}
    peers: defaultdict[str, list[str]] = defaultdict(list)
    for key, names in peer_names().items():
        for name in names:
            peers[name].append(key)
    return {name: tuple(dict.fromkeys(keys)) for name, keys in (settings | peers).items()}


def _suffixes(name: str) -> Iterator[str]:
    """`a.b_c` as a_b_c, then b_c: the dotted name with fewer and fewer of its sections."""
    parts = name.lstrip("-+").replace("-", "_").lower().split(".")
    for first, part in enumerate(parts):
        yield "_".join(parts[first:])
        if part in OTHER_MODELS:
            return


def settings_for(name: str) -> tuple[str, ...]:
    """Our settings for another trainer's option or key `name`; () if there are none."""
    known = _settings_by_name()
    return next((known[suffix] for suffix in _suffixes(name) if suffix in known), ())


def nearest(name: str) -> str | None:
    """The most similar known setting, preferably of the same section; None if none is similar."""
    name = name.lstrip("+")
    if option := difflib.get_close_matches(name, FLAG_KEYS, n=1, cutoff=CLOSE):
        return FLAG_KEYS[option[0]]
    known = [*defaults(), *ALIASES, *NOT_USED, *(key for key in SHORT_FORMS if "." in key)]
    head, _, last = name.rpartition(".")
    siblings = [key for key in known if head and key.rpartition(".")[0] == head]
    by_last = {key.rpartition(".")[2]: key for key in reversed(siblings)}
    close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)
    if close:
        return by_last[close[0]]
    close = difflib.get_close_matches(name, known, n=1, cutoff=CLOSE)
    if close:
        return close[0]
    by_last = {key.rpartition(".")[2]: key for key in reversed(known)}
    cutoff = CLOSE if len(last) > SHORT_NAME else CLOSE_IF_SHORT
    close = difflib.get_close_matches(last, by_last, n=1, cutoff=cutoff)
    return by_last[close[0]] if close else None


def suggestion(name: str) -> str:
    """Hint with the settings that `name` may mean, after a space; "" if there are none."""
    meant = settings_for(name)
    if len(meant) == 1:
        return f" Use {meant[0]}."
    if meant:
        return f" Related settings: {', '.join(meant)}."
    close = nearest(name)
    return f" Nearest: {close}." if close else ""


def as_option(key: str) -> str:
    """How to type the setting `key`: its option if it has one, else key=VALUE."""
    option = next((flag for flag, setting in FLAG_KEYS.items() if setting == key), None)
    if key == "algorithm.name":
        option = "algo"
    return f"--{option}" if option else f"{key}=VALUE"
