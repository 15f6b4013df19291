"""`rlcli algo recommend`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rlcli.cli.arguments import Json
from rlcli.terminal.text import WIDTH, wrap

if TYPE_CHECKING:
    from rlcli.plan.shapes import ModelShape
    from rlcli.tools.recommend import Advice, Situation, Task

TASKS = ("math", "code", "choice", "long_text", "dialogue", "experiment", "other")


def _tasks(incomplete: str) -> list[str]:
    return [task for task in TASKS if task.startswith(incomplete)]


def recommend(
    task: Annotated[str, typer.Option(help=", ".join(TASKS) + ".", autocompletion=_tasks)] = "math",
    gpus: Annotated[int | None, typer.Option(min=0, help="None: those of this machine.")] = None,
    memory_gib: Annotated[float | None, typer.Option(min=0.1, help="Of one GPU.")] = None,
    model: Annotated[str | None, typer.Option(help="Directory or hub name.")] = None,
    model_size: Annotated[
        float | None, typer.Option(min=0.0001, help="Billions of parameters.")
    ] = None,
    stable: Annotated[bool, typer.Option("--stable", help="Steadiness before speed.")] = False,
    multi_reward: Annotated[
        bool, typer.Option("--multi-reward", help="The reward has several parts.")
    ] = False,
    long_answers: Annotated[
        bool, typer.Option("--long-answers", help="Thousands of tokens each.")
    ] = False,
    pass_at_k: Annotated[
        bool, typer.Option("--pass-at-k", help="One right answer of k is enough.")
    ] = False,
    one_answer: Annotated[
        bool, typer.Option("--one-answer", help="Several per prompt cost too much.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Name the algorithm for a task and a machine, why, and the command to type."""
    from rlcli.tools.recommend import Situation
    from rlcli.tools.recommend import recommend as advise

    wanted = _task(task)
    machine = find_situation_machine(gpus, memory_gib)
    size = _size(model, model_size)
    situation = Situation(
        task=wanted,
        gpus=machine.gpus,
        memory_gib=machine.memory_gib,
        billions=size.billions,
        model=size.model,
        shape=size.shape,
        stable=stable,
        multi_reward=multi_reward,
        long_answers=long_answers,
        pass_at_k=pass_at_k,
        one_answer=one_answer,
    )
    best, second = advise(situation)
    if as_json:
        told = {**asdict(replace(situation, shape=None)), "machine": machine.said}
        told.pop("shape")
        said = {**_described(best), "second": _described(second), "situation": told}
        print(json.dumps(said, ensure_ascii=False))
        return
    print("\n".join(_advice_lines(situation, machine, size, best, second)))


def _task(name: str) -> Task:
    """The task of that name. Raises: ConfigError with the nearest."""
    import difflib

    from rlcli.errors import ConfigError

    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"Nearest: {close[0]}; there" if close else "There"
        raise ConfigError(f"--task {name} is none of ours. {hint} are {', '.join(TASKS)}.")
    return cast("Task", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    gpus: int
    memory_gib: float
    said: str


GUIDES_GIB = 80.0
"""The A100 of the guides, where a GPU is spoken of and none is here."""


def find_situation_machine(gpus: int | None, memory_gib: float | None) -> _Machine:
    """What is given of the machine, and what is found of the rest."""
    import os

    from rlcli.system.hardware import GIB, ask_driver, total_ram, visible_gpus

    is_asked = gpus is None or memory_gib is None
    found = visible_gpus(ask_driver()[0], os.environ) if is_asked else []
    count = len(found) if gpus is None else gpus
    said = f"--gpus {count} ({'given' if gpus is not None else 'counted by nvidia-smi'})"
    if memory_gib is not None:
        return _Machine(gpus=count, memory_gib=memory_gib, said=f"{said}, {memory_gib:g} GiB each")
    sizes = [gpu.memory_gib for gpu in found if gpu.memory_gib is not None]
    if count and sizes:
        smallest = min(sizes)
        return _Machine(gpus=count, memory_gib=smallest, said=f"{said}, {smallest:.0f} GiB each")
    if count:
        said = f"{said}, {GUIDES_GIB:g} GiB each (not known here: taken for an A100)"
        return _Machine(gpus=count, memory_gib=GUIDES_GIB, said=said)
    memory = total_ram() / GIB
    return _Machine(gpus=0, memory_gib=memory, said=f"{said}, {memory:.0f} GiB of RAM")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    billions: float
    model: str
    shape: ModelShape | None
    said: str


def _size(model: str | None, billions: float | None) -> _Size:
    """Raises: ModelError for a model whose size cannot be found."""
    from rlcli.config.schema import ModelConfig
    from rlcli.errors import ModelError
    from rlcli.plan.models import find_shape

    if billions is not None:
        said = f"--model_size {billions:g} (given)"
        return _Size(billions=billions, model=model or "MODEL", shape=None, said=said)
    name = model or ModelConfig().path
    try:
        shape = find_shape(name)
    except ModelError as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"{first}\nGive --model_size in billions of parameters.") from None
    billions = shape.parameters / 1e9
    origin = "given" if model else "the default"
    said = f"--model {name} ({origin}, {billions:.2g}B)"
    return _Size(billions=billions, model=name, shape=shape, said=said)


def _described(advice: Advice) -> dict[str, Any]:
    from rlcli.tools.recommend import CORRECTIONS, settings_that_matter, what_to_watch

    name = advice.pick.algorithm
    return {
        "algorithm": name,
        "n": advice.pick.n,
        "why": advice.pick.why,
        "command": advice.command(),
        "words": advice.words(),
        "placement": advice.placed.placement,
        "phase": advice.placed.largest.name,
        "peak_gib": round(advice.placed.largest.peak_gib, 2),
        "settings": {key: value for key, (value, _) in settings_that_matter(advice).items()},
        "watch": what_to_watch(advice),
        "cautions": advice.cautions,
        "correction": CORRECTIONS.get(name),
    }


def _advice_lines(
    situation: Situation, machine: _Machine, size: _Size, best: Advice, second: Advice
) -> list[str]:
    from rlcli.config.resolved import show
    from rlcli.tools.recommend import CORRECTIONS, settings_that_matter, what_to_watch

    names = ("stable", "multi_reward", "long_answers", "pass_at_k", "one_answer")
    wishes = [f"--{name}" for name in names if getattr(situation, name)]
    no = [f"--{name}" for name in names if not getattr(situation, name)]
    looked = [f"--task {situation.task}", machine.said, size.said, *wishes]
    lines = wrap(f"looked at: {'; '.join(looked)}")
    lines += wrap(f"not asked for: {', '.join(no)}") if no else []
    lines += ["", f"Use {_name(best)}"]
    lines += wrap(best.pick.why, "  because ")
    lines += wrap(_memory(situation, best), "  memory  ")
    if best.pick.algorithm in CORRECTIONS:
        lines += wrap(CORRECTIONS[best.pick.algorithm], "  guides  ")
    for caution in best.cautions:
        lines += wrap(caution, "  note    ")
    lines += ["", "Type", *_command_lines(best), "", "Settings that matter"]
    for key, (value, why) in settings_that_matter(best).items():
        lines += wrap(why, f"  {f'{key}={show(value)}':<30}  ")
    lines += ["", "Watch"]
    for key, why in what_to_watch(best).items():
        lines += wrap(why, f"  {key:<20}  ")
    lines += ["", f"Second choice: {_name(second)}"]
    lines += wrap(second.pick.why, "  because ")
    for caution in second.cautions:
        lines += [] if caution in best.cautions else wrap(caution, "  note    ")
    return [*lines, *_command_lines(second)]


def _name(advice: Advice) -> str:
    n = advice.pick.n
    return f"{advice.pick.algorithm}, {n} answer{'s' if n > 1 else ''} per prompt"


def _memory(situation: Situation, advice: Advice) -> str:
    placed = advice.placed
    fits = "does not fit" if placed.placement == "too large" else "fits"
    said = (
        f"{fits}: the largest phase, {placed.largest.name}, takes {placed.largest.peak_gib:.1f} of "
        f"{situation.memory_gib:.1f} GiB (rlcli plan with the same words says where it goes)"
    )
    if not placed.costs:
        return said
    return (
        f"{said}; {placed.all_gib:.1f} before what was added, which costs {', '.join(placed.costs)}"
    )


def _command_lines(advice: Advice) -> list[str]:
    """The command over as many lines as 80 columns ask for, as a shell reads it."""
    words = advice.words()
    lines, line = [], " "
    for position, word in enumerate(words):
        quoted = shlex.quote(word)
        if len(line) + len(quoted) + 3 > WIDTH:
            lines.append(f"{line} \\")
            line = "   "
        line += f" {quoted}"
        if position == len(words) - 1:
            lines.append(line)
    return lines
