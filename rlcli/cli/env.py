"""`rlcli env`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlcli.data.readers import Row
    from rlcli.envs.process import EnvSpec

env_app = typer.Typer(help="Check and look at environments.", no_args_is_help=True)
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="FILE.py:CLASS, FILE.py or builtin:NAME.")
]
Tools = Annotated[bool, typer.Option("--tools", help="The target is a file of functions.")]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Arguments of the class.")
]
REPLIES = ("7", "I do not know.", "")
"""What a policy might write, for a trial."""
NUM_TRIED = 4


@env_app.callback()
def _group() -> None:
    """Check and look at environments."""


@env_app.command()
def check(target: Target, arguments: Arguments = None, tools: Tools = False) -> None:
    """Load an environment, and play it with made-up replies."""
    from rlcli.envs.run import Environment
    from rlcli.envs.tasks import describe_environment

    spec = _spec(target, arguments, is_tools=tools)
    facts = describe_environment(spec)
    names = [schema["function"]["name"] for schema in facts.schemas]
    print(f"{target}: {facts.form}")
    print(f"tools: {', '.join(names) or 'none'}")
    if facts.num_tasks is not None:
        print(f"tasks: {facts.num_tasks}")
    print(f"reward: {'the environment gives it' if facts.scores else '--reward gives it'}")
    if facts.form != "steps":
        return
    rows = _rows(Environment(spec=spec, facts=facts), NUM_TRIED)
    seen = [_play(spec, row) for row in rows]
    for row, (line, _) in zip(rows, seen, strict=True):
        print(f"{row.id}: {line}")
    if any(first != second for first, second in (both for _, both in seen)):
        print("warning: two episodes of one seed differ: answers must depend on the seed alone.")
        raise SystemExit(1)


@env_app.command()
def show(
    target: Target,
    arguments: Arguments = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Episodes to show.")] = 2,
) -> None:
    """Print the first messages of some episodes."""
    from rlcli.envs.run import Environment
    from rlcli.envs.tasks import describe_environment
    from rlcli.errors import UsageError

    spec = _spec(target, arguments, is_tools=False)
    environment = Environment(spec=spec, facts=describe_environment(spec))
    if environment.facts.form == "functions":
        raise UsageError(f"{target} has tools and no first messages. rlcli env check lists them.")
    for row in _rows(environment, n):
        print(f"{row.id} (seed {row.extra_info['env_seed']})")
        for message in row.prompt:
            print(f"  {_field(message, 'role')}: {_field(message, 'content')}")


def _field(message: Any, name: str) -> str:
    return str(message.get(name, "")) if isinstance(message, dict) else str(message)


def _spec(target: str, arguments: list[str] | None, *, is_tools: bool) -> EnvSpec:
    from rlcli.config.value_parsing import parse_value
    from rlcli.envs.process import EnvSpec
    from rlcli.errors import UsageError

    args: dict[str, Any] = {}
    for word in arguments or ():
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"{word}: expected key=value.")
        args[name] = parse_value(text)
    return EnvSpec(target=target, args=args, is_tools=is_tools or _has_only_functions(target))


def _has_only_functions(target: str) -> bool:
    """Whether the target is a file of tools: one without a class."""
    file = Path(target).expanduser()
    if target.startswith("builtin:"):
        return True
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # loading it says what is wrong
        return False
    return not any(isinstance(node, ast.ClassDef) for node in tree.body)


def _rows(environment: Any, count: int) -> list[Row]:
    from rlcli.config.resolved import with_values
    from rlcli.config.schema import Config

    config = with_values(Config(), {"env.tasks": count, "env.val_tasks": 0})
    return environment.rows(config).train


def _play(spec: EnvSpec, row: Row) -> tuple[str, tuple[list[Any], list[Any]]]:
    """(summary, (replies, replies)) of one task played twice with the same made-up replies."""
    from rlcli.envs.episode import Episode, EpisodeFailedError
    from rlcli.envs.process import EnvPool
    from rlcli.errors import ConfigError

    pool = EnvPool(spec)
    task, seed = row.extra_info["env_task"], row.extra_info["env_seed"]
    try:
        both: list[list[Any]] = []
        for number in range(2):
            episode = Episode(pool, number, task, seed=seed, form="steps")
            replies: list[Any] = [episode.begin()]
            for text in REPLIES:
                replies.append(episode.step(text, (), is_truncated=False))
                if replies[-1].is_done:
                    break
            both.append(replies)
        last = both[0][1:]
        rewards = [reply.reward for reply in last if reply.reward is not None]
        line = f"{len(last)} turns, reward {sum(rewards):g}"
        return f"{line}, {'ended' if last[-1].is_done else 'goes on'}", (both[0], both[1])
    except EpisodeFailedError as error:
        raise ConfigError(f"{spec.target}: {error}") from error
    finally:
        pool.close()
