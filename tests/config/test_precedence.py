"""Defaults < algorithm preset < recipe < files in order < environment < key=value < flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlcli.config.resolved import Resolved, show
from rlcli.config.resolver import resolve


class Subject(NamedTuple):
    """A setting with every way to give it. `below`: value and origin under rloo and quickstart."""

    key: str
    names: tuple[str, ...]
    variable: str
    flag: str
    values: st.SearchStrategy[Any]
    below: tuple[Any, str]


SUBJECTS = [
    Subject(
        "algorithm.kl_coef",
        ("algorithm.kl_coef", "algorithm.kl_ctrl.kl_coef", "kl_coef"),
        "KL_COEF",
        "kl_coef",
        st.sampled_from([0.1, 0.02, 0.003, 1.0]),
        (0.001, "default"),
    ),
    Subject(
        "model.path",
        ("model.path", "actor_rollout_ref.model.path", "model"),
        "MODEL_PATH",
        "model",
        st.sampled_from(["a/b", "c", "Qwen/Qwen2.5-7B"]),
        ("builtin:quickstart", "recipe quickstart"),
    ),
    Subject(
        "train.n_gpus",
        ("train.n_gpus", "trainer.n_gpus_per_node", "n_gpus"),
        "N_GPUS",
        "n_gpus",
        st.integers(1, 16),
        (None, "default"),
    ),
]
LEVELS = ["file a", "file b", "env", "override", "flag"]


class Given(NamedTuple):
    """The values that each level says, in the order in which they are said."""

    subject: Subject
    said: dict[str, list[tuple[str, Any]]]


@st.composite
def sources(draw: st.DrawFn) -> Given:
    subject = draw(st.sampled_from(SUBJECTS))
    said: dict[str, list[tuple[str, Any]]] = {}
    for level in draw(st.sets(st.sampled_from(LEVELS))):
        repeats = draw(st.integers(1, 3)) if level == "override" else 1
        said[level] = [
            (draw(st.sampled_from(subject.names)), draw(subject.values)) for _ in range(repeats)
        ]
    return Given(subject, said)


def resolved_of(given: Given, folder: Path) -> Resolved:
    said, subject = given.said, given.subject
    for level in ("file a", "file b"):
        lines = [f"{name}: {value}" for name, value in said.get(level, [])]
        (folder / f"{level[-1]}.yaml").write_text("\n".join(lines))
    return resolve(
        algo="rloo",
        preset="quickstart",
        files=[Path("a.yaml"), Path("b.yaml")],
        env={subject.variable: str(said["env"][0][1])} if "env" in said else {},
        overrides=[f"{name}={value}" for name, value in said.get("override", [])],
        flags={subject.flag: said["flag"][0][1]} if "flag" in said else {},
        cwd=folder,
    )


@given(given=sources())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_highest_source_wins_and_among_repeats_the_last(
    given: Given, tmp_path_factory: pytest.TempPathFactory
) -> None:
    subject = given.subject
    resolved = resolved_of(given, tmp_path_factory.getbasetemp())
    top = max(given.said, key=LEVELS.index, default=None)
    if top is None:
        assert (resolved.value(subject.key), resolved.sources[subject.key]) == subject.below
        assert subject.key not in resolved.explicit
        return
    name, value = given.said[top][-1]
    assert resolved.value(subject.key) == value
    origin = {
        "file a": "file a.yaml",
        "file b": "file b.yaml",
        "env": f"env {subject.variable}",
        "override": f"override {name}={value}",
        "flag": f"flag --{subject.flag}",
    }[top]
    assert resolved.sources[subject.key] == origin
    assert subject.key in resolved.explicit
    said = [f"{n}={v}" for n, v in given.said.get("override", [])]
    wanted = {f"flag --{subject.flag} {show(value)} beats {text}." for text in said}
    told = {note for note in resolved.notes if note.startswith(f"flag --{subject.flag}")}
    assert told == (wanted if top == "flag" else set())


def test_every_setting_has_a_low_origin_until_someone_says_it(run: Any) -> None:
    origins = set(run(algo="ppo").sources.values())
    assert origins == {"default", "preset ppo", "flag --algo"}
