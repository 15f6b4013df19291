"""Data sets of reasoning-gym: generated tasks with one answer each, scored by their own graders."""

from __future__ import annotations

import dataclasses
import importlib
import random
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rlcli.envs.sources import EnvLoadError, nearest

_factory: Any = importlib.import_module("reasoning_gym.factory")
COMPOSITE = "composite"
"""The library's own mixture, which knows no weights on the command line."""
CHUNK = 500
"""Tasks of one data set object: some data sets allocate all of theirs when they are made."""
KEPT = 4096
"""Tasks that a process keeps."""
MAX_SKIPPED = 20
INSTRUCTION = "\n\nWrite the final answer between <answer> and </answer>."
RESERVED = ("seed", "size")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def names() -> list[str]:
    """Names of all data sets."""
    return sorted(name for name in _factory.DATASETS if name != COMPOSITE)


def load(name: str, args: Mapping[str, Any]) -> type[ReasoningGym]:
    """The environment of one data set or a mixture. Raises: EnvLoadError."""
    weights = parse_mixture(name)
    given = dict(args)
    instruction = given.pop("instruction", INSTRUCTION)
    fields = {each: _fields(each) for each in weights}
    own = {key: given.pop(key) for key in [*given] if key in weights}
    known = sorted(set().union(*fields.values()) - set(RESERVED))
    for key in given:
        if key not in known:
            raise EnvLoadError(
                f"env.args.{key}: {name} has no such setting. {nearest(key, known)}"
                f"Settings: {', '.join(['instruction', *known])}."
            )
    configs: dict[str, dict[str, Any]] = {}
    for each in weights:
        shared = {key: value for key, value in given.items() if key in fields[each]}
        configs[each] = {**shared, **_own_settings(each, own.get(each, {}), fields[each])}
        _try(each, configs[each])
    sets = DataSets(configs)
    made = {"sets": sets, "weights": weights, "instruction": str(instruction or "")}
    return type("ReasoningGym", (ReasoningGym,), made)


def parse_mixture(text: str) -> dict[str, float]:
    """Weights by name of `NAME` or `[NAME:WEIGHT,NAME]`. Raises: EnvLoadError."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    weights: dict[str, float] = {}
    for part in inner.split(","):
        name, colon, number = part.strip().partition(":")
        weight = _weight(number) if colon else 1.0
        if weight is None:
            raise EnvLoadError(
                f"reasoning-gym:{text}: the weight of {name} is {number!r}, expected a number "
                "above 0."
            )
        if name not in names():
            raise EnvLoadError(
                f"reasoning-gym has no data set {name!r}. {nearest(name, names())}"
                "rlcli env list reasoning-gym shows all."
            )
        if name in weights:
            raise EnvLoadError(f"reasoning-gym:{text} names {name} twice. Give it one weight.")
        weights[name] = weight
    return weights


class DataSets:
    """Generates the task (name, seed, number) of the configured data sets."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self._configs = configs
        self.chunk = lru_cache(maxsize=2 * len(configs) + 2)(self._make_chunk)
        self.entry = lru_cache(maxsize=KEPT)(self._make_entry)

    def _make_chunk(self, name: str, seed: int, number: int) -> Any:
        # data sets draw task i from seed + i: chunks of neighbouring seeds would repeat tasks
        own = zlib.crc32(repr((name, seed, number)).encode())
        return _factory.create_dataset(name, **self._configs[name], seed=own, size=CHUNK)

    def _make_entry(self, name: str, seed: int, number: int) -> dict[str, Any]:
        # a few data sets draw from the process's random, and word_ladder may run out of words
        for skipped in range(MAX_SKIPPED):
            random.seed(zlib.crc32(repr((name, seed, number, skipped)).encode()))
            chunk = self.chunk(name, seed, number // CHUNK + skipped * KEPT)
            try:
                return chunk[number % CHUNK]
            except IndexError:
                continue
        raise RuntimeError(f"{name} has no task {number} with these settings")

    def score(self, name: str, answer: str | None, entry: Mapping[str, Any]) -> float:
        """The grader's score. One that raises on an answer gives what it gives for none."""
        data = self.chunk(name, 0, 0)
        for given in (answer, None):
            try:
                return float(data.score_answer(given, entry))
            except Exception:  # graders parse what the model wrote
                continue
        return 0.0


class ReasoningGym:
    """A single-turn task. `load` sets the data sets, weights and instruction in a subclass."""

    sets: DataSets
    weights: Mapping[str, float]
    instruction: str

    def task(self, index: int, seed: int) -> dict[str, Any]:
        """Task `index` of a run's seed."""
        draw = random.Random(f"{seed} {index}")
        (name,) = draw.choices([*self.weights], [*self.weights.values()])
        entry = self.sets.entry(name, seed, index)
        return {
            "id": f"{name}:{seed}:{index}",
            "prompt": f"{entry['question']}{self.instruction}",
            "ground_truth": entry["answer"],
            "data_source": f"reasoning_gym/{name}",
        }

    def answer(self, task: Mapping[str, Any]) -> str | None:
        """A right reply to a task; None where the data set has none."""
        right = task["ground_truth"]
        if right is None:
            return None
        return f"<answer>{right}</answer>" if self.instruction else str(right)

    def reset(self, task: Mapping[str, Any]) -> Sequence[Any]:
        """Begin a task; its prompt is in the task."""
        name, seed, index = str(task["id"]).split(":")
        self._name, self._entry = name, self.sets.entry(name, int(seed), int(index))
        return ()

    def step(self, reply: Any) -> dict[str, Any]:
        """Score an answer."""
        score = self.sets.score(self._name, self.answer_in(reply.text), self._entry)
        return {"reward": score, "done": True}

    def answer_in(self, text: str) -> str | None:
        """The answer that a reply gives: between its last tags, or without tags all of it.

        None: the tags that the instruction asks for are missing.
        """
        found = _ANSWER.findall(text)
        if found:
            return found[-1].strip()
        return None if self.instruction else text.rpartition("</think>")[2].strip()


def _weight(text: str) -> float | None:
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if 0 < weight < float("inf") else None


def _fields(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(_factory.DATASETS[name][1])}


def _own_settings(name: str, given: Any, fields: set[str]) -> dict[str, Any]:
    """Settings of one data set of a mixture. Raises: EnvLoadError."""
    if not isinstance(given, Mapping):
        raise EnvLoadError(
            f"env.args.{name}={given}: expected settings of {name}, as env.args.{name}.KEY=VALUE."
        )
    for key in given:
        if key not in fields or key in RESERVED:
            raise EnvLoadError(
                f"env.args.{name}.{key}: {name} has no such setting. {nearest(key, fields)}"
                f"Settings: {', '.join(sorted(fields - set(RESERVED)))}."
            )
    return dict(given)


def _try(name: str, config: Mapping[str, Any]) -> None:
    """Raises: EnvLoadError where a data set refuses its settings."""
    try:
        _factory.create_dataset(name, **config, seed=0, size=CHUNK)
    except Exception as error:  # asserts, mostly
        why = str(error) or type(error).__name__
        shown = ", ".join(f"{key}={value}" for key, value in config.items()) or "its defaults"
        raise EnvLoadError(f"reasoning-gym:{name} refuses {shown}: {why}.") from error
