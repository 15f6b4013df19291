"""`rlcli env`."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlcli.cli.arguments import Json

if TYPE_CHECKING:
    from rlcli.config.schema import Config
    from rlcli.data.readers import Row
    from rlcli.envs.process import EnvSpec
    from rlcli.envs.run import Environment
    from rlcli.envs.trial import Trial

env_app = typer.Typer(help="List, check, look at and play environments.", no_args_is_help=True)
Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="FILE.py:CLASS, FILE.py, builtin:NAME or what rlcli env list shows."
    ),
]
Tools = Annotated[bool, typer.Option("--tools", help="The target is a file of functions.")]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Arguments of the class.")
]
Python = Annotated[
    str | None, typer.Option("--env_python", "--env-python", help="Python of the environment.")
]
Data = Annotated[list[str] | None, typer.Option("--data", help="Rows to begin episodes with.")]

NUM_TRIED = 4


@env_app.callback()
def _group() -> None:
    """List, check, look at and play environments."""


@env_app.command("list")
def list_environments(
    library: Annotated[
        str | None, typer.Argument(help="Library whose environments to list by name.")
    ] = None,
    env_python: Python = None,
    as_json: Json = False,
) -> None:
    """List the forms of environments and the libraries that are installed."""
    from rlcli.cli.env_list import form_lines, name_lines
    from rlcli.envs.inventory import builtin_tools, find_libraries
    from rlcli.envs.sources import SOURCES, nearest
    from rlcli.errors import UsageError

    if library is not None and library not in SOURCES:
        hint = nearest(library, SOURCES)
        raise UsageError(f"there is no library {library!r}. {hint}Known: {', '.join(SOURCES)}.")
    python = _python(env_python)
    found = find_libraries(python=python, prefix=library)
    if as_json:
        facts = found if library is None else found[library]
        print(json.dumps(facts if library else {"libraries": facts, "builtin": builtin_tools()}))
        return
    lines = form_lines(found) if library is None else name_lines(library, found[library])
    print("\n".join(lines))


@env_app.command()
def check(
    target: Target,
    arguments: Arguments = None,
    tools: Tools = False,
    data: Data = None,
    env_python: Python = None,
) -> None:
    """Load an environment, and play it with dummy replies."""
    from rlcli.envs.tasks import describe_environment
    from rlcli.envs.trial import try_twice

    spec = _spec(target, arguments, python=env_python, is_tools=tools)
    facts = describe_environment(spec)
    names = [schema["function"]["name"] for schema in facts.schemas]
    print(f"{target}: {facts.form}")
    print(f"tools: {', '.join(names) or 'none'}")
    if facts.has_tasks:
        print(f"tasks: {'without end' if facts.num_tasks is None else facts.num_tasks}")
    print(f"reward: {'the environment gives it' if facts.scores else '--reward gives it'}")
    if facts.form == "functions":
        return
    rows = _rows(_environment(spec, facts), NUM_TRIED, data, shows_notes=True)
    pairs = try_twice(spec, facts, rows)
    for row, (trial, _) in zip(rows, pairs, strict=True):
        print(f"{row.id}: {_summary(trial)}")
    for text in dict.fromkeys(text for trial, _ in pairs for text in trial.errors):
        print(f"tool: {text}")
    if any(first.seen != second.seen for first, second in pairs):
        print("warning: two episodes of one seed differ: answers must depend on the seed alone.")
        raise SystemExit(1)


@env_app.command()
def show(
    target: Target,
    arguments: Arguments = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Episodes to show.")] = 2,
    data: Data = None,
    env_python: Python = None,
) -> None:
    """Print the first messages of some episodes."""
    from rlcli.envs.tasks import describe_environment
    from rlcli.errors import UsageError

    spec = _spec(target, arguments, python=env_python)
    environment = _environment(spec, describe_environment(spec))
    if environment.facts.form == "functions":
        raise UsageError(f"{target} has tools and no first messages. rlcli env check lists them.")
    for row in _rows(environment, n, data):
        print(f"{row.id} (seed {row.extra_info['env_seed']})")
        for message in row.prompt:
            print(f"  {_field(message, 'role')}: {_field(message, 'content')}")


@env_app.command()
def play(
    target: Target,
    arguments: Arguments = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model that plays; without one, you play.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Episodes to play.")] = 1,
    data: Data = None,
    reward: Annotated[
        str | None, typer.Option("--reward", help="Reward where the environment gives none.")
    ] = None,
    max_turns: Annotated[
        int | None, typer.Option("--max_turns", "--max-turns", min=1, help="Turns at most.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the episodes.")] = 0,
    env_python: Python = None,
) -> None:
    """Play episodes by hand, or let a model play them."""
    from rlcli.cli import env_play
    from rlcli.envs.tasks import describe_environment
    from rlcli.errors import UsageError

    spec = _spec(target, arguments, python=env_python)
    if model is not None:
        settings: dict[str, Any] = {
            "env.tools" if spec.is_tools else "env.path": spec.target,
            "env.args": dict(spec.args),
            "env.python": spec.python,
            "env.max_turns": max_turns,
            "env.val_tasks": n,
            "env.tasks": n,
            "data.train": data or [],
            "data.val": data or [],
            "reward.fn": reward,
            "run.seed": seed,
        }
        given = {key: value for key, value in settings.items() if value is not None}
        env_play.play_model(model, given, n)
        return
    facts = describe_environment(spec)
    if facts.form == "functions" and not data:
        raise UsageError(f"{target} has tools and no tasks. Give --data FILE.")
    rows = _rows(_environment(spec, facts), n, data, seed=seed)
    env_play.play_by_hand(spec, facts, rows, max_turns=max_turns)


def _field(message: Any, name: str) -> str:
    return str(message.get(name, "")) if isinstance(message, dict) else str(message)


def _summary(trial: Trial) -> str:
    reward = "none" if trial.reward is None else f"{trial.reward:g}"
    end = "ended" if trial.is_done else "goes on"
    return f"{trial.num_turns} turns, reward {reward}, {end}"


def _python(name: str | None) -> str | None:
    from rlcli.envs.process import find_python

    return None if name is None else find_python(name)


def _environment(spec: EnvSpec, facts: Any) -> Environment:
    from rlcli.envs.run import Environment

    return Environment(spec=spec, facts=facts)


def _spec(
    target: str, arguments: list[str] | None, *, python: str | None, is_tools: bool = False
) -> EnvSpec:
    from rlcli.config.value_parsing import parse_value
    from rlcli.envs.agent_run import is_agent
    from rlcli.envs.process import EnvSpec
    from rlcli.errors import UsageError

    if is_agent(target):
        raise UsageError(
            f"{target} is an agent: it is tried by training with it, "
            "rlcli train --env, or against rlcli.serve (docs/agents.md)."
        )
    args: dict[str, Any] = {}
    for word in arguments or ():
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"{word}: expected key=value.")
        *groups, last = name.removeprefix("env.args.").split(".")
        inner = args
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = parse_value(text)
    is_tools = is_tools or _has_only_functions(target)
    return EnvSpec(target=target, args=args, is_tools=is_tools, python=_python(python))


def _has_only_functions(target: str) -> bool:
    """Whether the target is a file of tools: one without a class."""
    from rlcli.envs.loading import BUILTIN, PYTHON_TOOL, split_tools

    parts = split_tools(target)
    if target.startswith(BUILTIN) or PYTHON_TOOL in parts:
        return True
    try:
        tree = ast.parse(Path(target).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # loading it says what is wrong
        return len(parts) > 1 and all(part.endswith(".py") for part in parts)
    return not any(isinstance(node, ast.ClassDef) for node in tree.body)


def _rows(
    environment: Environment,
    count: int,
    data: Sequence[str] | None,
    *,
    seed: int = 0,
    shows_notes: bool = False,
) -> list[Row]:
    """The first rows: of the data, or of the environment itself. Raises: UsageError."""
    from rlcli.config.resolved import with_values
    from rlcli.config.schema import Config
    from rlcli.errors import UsageError

    values = {"env.tasks": count, "env.val_tasks": 0, "run.seed": seed, "data.train": data or []}
    config: Config = with_values(Config(), values)
    if data:
        from rlcli.setup.resources import read_data

        if environment.facts.has_tasks:
            raise UsageError(f"{environment.spec.target} has tasks of its own. Leave --data out.")
        return environment.begin(read_data(config, data)[:count], config)
    try:
        made = environment.rows(config)
    except UsageError as error:
        if environment.facts.has_tasks:
            raise
        raise UsageError(f"{error}\nIf it needs rows of data, give some: --data FILE.") from error
    if shows_notes:
        for note in made.notes:
            print(f"note: {note}")
    return made.train
