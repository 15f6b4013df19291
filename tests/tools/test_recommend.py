"""The algorithm for a task and a machine: the tree's answers, and commands that can be typed."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import typing

import pytest

from rlcli.algos.registry import ESTIMATORS
from rlcli.cli.recommend import TASKS
from rlcli.plan import RunPlan, make_memory_plan
from rlcli.plan.machine import Machine
from rlcli.plan.models import find_shape, shape_of_size
from rlcli.setup.checks import check, check_engines
from rlcli.tools.recommend import (
    CORRECTIONS,
    Advice,
    Situation,
    Task,
    choose,
    group_size,
    recommend,
    settings_that_matter,
    what_to_watch,
)


def answer(**situation: typing.Any) -> list[tuple[str, int]]:
    return [(pick.algorithm, pick.n) for pick in choose(Situation(**situation))]


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        ({"task": "math", "gpus": 1, "billions": 7.0}, [("grpo", 4), ("rloo", 5)]),
        ({"task": "code", "gpus": 8, "billions": 7.0}, [("grpo", 5), ("rloo", 5)]),
        ({"task": "math", "gpus": 8, "billions": 0.5, "stable": True}, [("ppo", 1), ("rloo", 16)]),
        ({"task": "math", "gpus": 1, "billions": 7.0, "stable": True}, [("rloo", 5), ("grpo", 5)]),
        ({"task": "dialogue", "gpus": 8, "billions": 0.5}, [("ppo", 1), ("grpo", 8)]),
        ({"task": "dialogue", "gpus": 8, "billions": 7.0}, [("grpo", 8), ("rloo", 5)]),
        ({"task": "long_text", "gpus": 1, "billions": 7.0}, [("grpo", 8), ("rloo", 5)]),
        ({"task": "experiment"}, [("grpo", 2), ("rloo", 4)]),
        ({"task": "experiment", "stable": True}, [("rloo", 4), ("grpo", 2)]),
        ({"task": "math", "gpus": 4, "long_answers": True}, [("dapo", 16), ("dr_grpo", 8)]),
        ({"task": "dialogue", "multi_reward": True}, [("gdpo", 8), ("grpo", 8)]),
        ({"task": "code", "pass_at_k": True, "billions": 14.0}, [("grpo_passk", 8), ("grpo", 4)]),
        ({"gpus": 0, "one_answer": True}, [("reinforce_plus_plus", 1), ("remax", 1)]),
    ],
)
def test_the_trees_answers(situation: dict[str, typing.Any], expected: object) -> None:
    assert answer(**situation) == expected


def test_one_large_gpu_has_room_for_a_critic_whatever_their_number() -> None:
    assert answer(task="dialogue", gpus=1, memory_gib=80.0, billions=0.5)[0] == ("ppo", 1)


@pytest.mark.parametrize(
    ("billions", "n"), [(0.5, 16), (2.9, 11), (3.0, 8), (7.0, 5), (10.0, 5), (14.0, 4), (72.0, 4)]
)
def test_small_models_want_more_answers_per_prompt(billions: float, n: int) -> None:
    assert group_size(billions) == n


def plan_of(advice: Advice, situation: Situation) -> RunPlan:
    shape = situation.shape or shape_of_size(situation.billions)
    resolved = check(advice.resolve())
    kind = "cuda" if situation.gpus else "cpu"
    return make_memory_plan(
        resolved,
        num_prompts=None,
        num_val=None,
        shape=shape,
        critic=shape if resolved.config.algorithm.advantage == "gae" else None,
        machine=Machine(kind=kind, name=kind, memory_gib=situation.memory_gib),
    )


@pytest.mark.parametrize(("model", "gib", "whole_gib"), [("0.5B", 16, 34.4), ("1.5B", 48, 79.6)])
def test_a_model_that_is_said_to_fit_whole_is_planned_to(
    model: str, gib: float, whole_gib: float
) -> None:
    shape = find_shape(f"Qwen/Qwen2.5-{model}")
    situation = Situation(
        gpus=1, memory_gib=gib, billions=shape.parameters / 1e9, model=shape.name, shape=shape
    )
    best = recommend(situation)[0]
    assert best.placed.all_gib == pytest.approx(whole_gib, abs=0.05)
    assert best.placed.placement == "whole"
    plan = plan_of(best, situation)
    assert plan.fits
    assert plan.largest.peak_gib == pytest.approx(best.placed.largest.peak_gib)


def test_adapters_are_next_and_after_them_a_smaller_model() -> None:
    """7B: 16 + 4 + 2 bytes each are 156 GiB, 2 frozen ones 14 GiB; 70B: 130 GiB frozen."""
    lora = recommend(Situation(gpus=1, billions=7.6))[0]
    assert lora.placed.placement == "lora"
    assert "lora.rank=32" in lora.words()
    large = recommend(Situation(gpus=1, billions=72.7, model="Qwen/Qwen2.5-72B"))[0]
    assert large.placed.placement == "too large"
    said = " ".join(large.cautions)
    assert (
        f"still takes {large.placed.largest.peak_gib:.1f} of 80.0 GiB; Qwen2.5-32B would fit"
        in said
    )
    smaller = Situation(gpus=1, billions=32.8, model="Qwen/Qwen2.5-32B")
    assert recommend(smaller)[0].placed.placement == "lora"
    tiny = recommend(Situation(gpus=1, memory_gib=0.5))[0]
    assert "no smaller model of its family would fit" in " ".join(tiny.cautions)


def test_several_gpus_are_spoken_of_and_not_typed() -> None:
    first, second = recommend(Situation(task="dialogue", gpus=8, billions=7.0))
    assert first.placed.placement == "lora"
    assert "fsdp" not in first.command()
    (said,) = [text for text in first.cautions if "--engine fsdp" in text]
    assert "every one of the 8 GPUs holds all of this" in said
    assert "all weights then fit" in said
    assert "so does ppo" in said
    assert not any("fsdp" in text for text in second.cautions)


def test_a_model_known_by_its_size_alone_has_that_many_parameters() -> None:
    for billions in (0.02, 0.5, 6.7, 200.0):
        assert shape_of_size(billions).parameters == round(billions * 1e9)
    assert shape_of_size(7.0).layers == 28


def every_situation() -> typing.Iterator[Situation]:
    wishes = ("stable", "multi_reward", "long_answers", "pass_at_k", "one_answer")
    for task, gpus, billions in itertools.product(TASKS, (0, 1, 8), (0.5, 7.0, 70.0)):
        for flags in itertools.product((False, True), repeat=len(wishes)):
            if sum(flags) > (2 if billions < 7.0 else 1 if billions < 70.0 else 0):
                continue
            wanted: dict[str, typing.Any] = dict(zip(wishes, flags, strict=True))
            model = "MODEL" if billions > 0.5 else None
            for memory_gib in (80.0,) if any(flags) else (16.0, 48.0, 80.0):
                yield Situation(
                    task=task, gpus=gpus, billions=billions, memory_gib=memory_gib, model=model,
                    **wanted,
                )  # fmt: skip


@pytest.mark.nightly
def test_every_recommended_command_passes_the_checks() -> None:
    seen: set[str] = set()
    for situation in every_situation():
        for advice in recommend(situation):
            seen.add(advice.command())
            resolved = check_engines(check(advice.resolve()))
            fits = advice.placed.placement != "too large"
            assert plan_of(advice, situation).fits is fits, advice.command()
            assert resolved.config.rollout.n == advice.pick.n
            needs = ESTIMATORS[resolved.config.algorithm.advantage].needs
            assert advice.pick.n > 1 or "group" not in needs
            assert shlex.split(advice.command()) == advice.words()
            assert settings_that_matter(advice)["rollout.n"][0] == advice.pick.n
            assert ("value_loss" in what_to_watch(advice)) == ("critic" in needs)
    assert len(seen) > 100


def test_the_words_mean_what_the_advice_resolves_to() -> None:
    situation = Situation(task="dialogue", gpus=8, billions=0.6, model="MODEL")
    words = recommend(situation)[0].words()
    for pair in (["--model", "MODEL"], ["--rm_prompt_preset", "dialogue"], ["--algo", "ppo"]):
        at = words.index(pair[0])
        assert words[at : at + 2] == pair
    assert "--use_api_reward" in words


def test_every_correction_is_of_an_algorithm() -> None:
    from rlcli.config.presets import find_preset

    assert all(find_preset(name) == name for name in CORRECTIONS)
    assert set(TASKS) == set(typing.get_args(Task))


def test_a_recommendation_needs_no_torch() -> None:
    code = (
        "import sys; from rlcli.tools.recommend import *; a = recommend(Situation())[0]; "
        "what_to_watch(a); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
