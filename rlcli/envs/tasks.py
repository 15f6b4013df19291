"""The rows of a run with an environment: its own tasks, seeds, or a data file's rows."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rlcli.data.readers import Row
from rlcli.envs.episode import EnvFacts, describe
from rlcli.envs.process import (
    MAX_RESETS,
    EnvError,
    EnvLostError,
    EnvPool,
    EnvSpec,
    EnvTimeoutError,
)
from rlcli.errors import ConfigError
from rlcli.types import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlcli.config.episodes import EnvConfig

TASK, SEED, OPENING = "env_task", "env_seed", "env_opening"
"""Keys of extra_info: a row's task and seed for reset, and the messages that reset returned."""
TASK_NAME = "id"
"""Key of a task by which the environment finds it again; it does not make tasks different."""
TASKS_PER_REQUEST = 16
HELD_OUT_FROM = 2**30
"""Index of the first held-out task of an environment whose tasks have no end."""
TRIED_TASKS = 16
"""Tasks of each data source whose right answers are tried."""
MAX_LUCKY = 0.2
"""Share of these above which a made-up answer must not earn what the right one does."""
SILENT_S = 2.0
"""Seconds before progress is shown."""
MAX_HELD_OUT = 5
"""Of an environment's own tasks at most one in so many is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvRows:
    """Rows of an environment: to train on and to evaluate on, with remarks."""

    train: list[Row]
    val: list[Row]
    notes: list[str]


def smaller_limit(*limits: int | None) -> int | None:
    """The smallest limit on a number of rows; None and numbers below 1 set none."""
    return min((each for each in limits if each is not None and each > 0), default=None)


def spec_of(env: EnvConfig) -> EnvSpec:
    """The environment that the settings name."""
    target = env.tools if env.path is None else env.path
    assert target is not None
    return EnvSpec(
        target=target,
        args=env.args,
        is_tools=env.path is None,
        python=env.python,
        workers=env.workers,
        concurrency=env.concurrency,
        timeout_s=env.timeout_s,
        episode_timeout_s=env.episode_timeout_s,
        keep_env=env.keep_env,
    )


@contextmanager
def opened(spec: EnvSpec) -> Iterator[EnvPool]:
    """Environment processes for a while. Raises: ConfigError when the environment fails."""
    pool = EnvPool(spec)
    try:
        yield pool
    except (EnvError, EnvLostError, EnvTimeoutError) as error:
        raise ConfigError(f"{spec.target}: {error}") from error
    finally:
        pool.close()


def describe_environment(spec: EnvSpec) -> EnvFacts:
    """What the environment is. Raises: ConfigError with file and line."""
    with opened(spec) as pool:
        return describe(pool)


def own_rows(
    spec: EnvSpec,
    facts: EnvFacts,
    *,
    num_train: int,
    num_val: int,
    seed: int,
    only_val: bool = False,
    val_limit: int | None = None,
    show: Callable[[str], None] = lambda text: None,
) -> EnvRows:
    """The rows of an environment without a data file. Raises: ConfigError.

    only_val: leave out the rows to train on. val_limit: rows to evaluate on at most; those beyond
    are not begun. show: takes progress.
    """
    with opened(spec) as pool:
        if facts.has_tasks:
            rows, notes = _split_tasks(pool, facts.num_tasks, num_train, num_val, seed, show)
        else:
            rows = {
                name: [_row(name, i, {}, _seed(seed, name, i)) for i in range(count)]
                for name, count in (("train", num_train), ("val", num_val))
            }
            notes = []
        if facts.knows_answers and not only_val:
            notes += check_answers(pool, rows["train"])
        train, val = [] if only_val else rows["train"], rows["val"][:val_limit]
        begun = _with_openings(pool, [*train, *val], show)
        num = len(train)
        return EnvRows(train=begun[:num], val=begun[num:], notes=notes)


def begun_rows(
    spec: EnvSpec,
    rows: Sequence[Row],
    *,
    seed: int,
    show: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Rows of a data file with what reset adds to them. Raises: ConfigError."""
    seeded = [
        replace(
            row,
            extra_info={
                **row.extra_info,
                TASK: {**row.columns, "ground_truth": row.ground_truth},
                SEED: _seed(seed, row.id),
            },
        )
        for row in rows
    ]
    with opened(spec) as pool:
        return _with_openings(pool, seeded, show)


def check_answers(pool: EnvPool, rows: Sequence[Row]) -> list[str]:
    """Remarks on the rewards of right and made-up answers to some tasks of each data source.

    Raises: ConfigError for a source that rewards both alike.
    """
    by_source: dict[str, list[Row]] = {}
    for row in rows:
        some = by_source.setdefault(row.data_source, [])
        if len(some) < TRIED_TASKS:
            some.append(row)
    notes: list[str] = []
    for source, some in by_source.items():
        found = _for_each(pool, "answers", some)
        notes += _judge_answers(source or pool.spec.target, found)
    return notes


def _judge_answers(source: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    pairs = [(each["right"], max(each["wrong"])) for each in found if each["right"] is not None]
    if not pairs:
        return [f"{source} has no right answers, so its reward was not checked against them."]
    lucky = [(right, wrong) for right, wrong in pairs if wrong >= right]
    if len(lucky) > MAX_LUCKY * len(pairs):
        right, wrong = lucky[0]
        raise ConfigError(
            f"{source} rewards made-up answers like right ones: in {len(lucky)} of {len(pairs)} "
            f"tasks tried (the right answer got {right:g}, a made-up one {wrong:g}).\n"
            "A model learns nothing from this reward. Use another data set, or other settings."
        )
    if lucky:
        return [
            f"{source}: in {len(lucky)} of {len(pairs)} tasks tried a made-up answer got the "
            "reward of the right one."
        ]
    return []


def _split_tasks(
    pool: EnvPool,
    num_tasks: int | None,
    num_train: int,
    num_val: int,
    seed: int,
    show: Callable[[str], None],
) -> tuple[dict[str, list[Row]], list[str]]:
    if num_tasks == 0:
        raise ConfigError(f"{pool.spec.target}: len() of the environment is 0: it has no tasks.")
    if num_tasks is None:
        wanted = {
            "train": range(num_train),
            "val": range(HELD_OUT_FROM, HELD_OUT_FROM + num_val),
        }
    else:
        held = min(num_val, num_tasks // MAX_HELD_OUT)
        wanted = {
            "train": range(min(num_train, num_tasks - held)),
            "val": range(num_tasks - held, num_tasks),
        }
    rows: dict[str, list[Row]] = {}
    target = pool.spec.target
    for name, indices in wanted.items():
        numbers = [(index, seed) for index in indices]
        found = _make_tasks(pool, numbers, show)
        rows[name] = [
            _row(name, index, _task(target, given), _seed(seed, "task", index))
            for index, given in zip(indices, found, strict=True)
        ]
    known = {_key(row) for row in rows["train"]}
    kept = [row for row in rows["val"] if _key(row) not in known]
    notes = []
    unused = 0 if num_tasks is None else wanted["val"].start - len(rows["train"])
    if unused:
        notes.append(f"{unused} of {num_tasks} tasks are not used: env.tasks is {num_train}.")
    if dropped := len(rows["val"]) - len(kept):
        notes.append(f"{dropped} held-out tasks repeat tasks of training and are left out.")
    return {**rows, "val": kept}, notes


def _key(row: Row) -> str:
    task = row.extra_info[TASK]
    told = {key: value for key, value in task.items() if key != TASK_NAME} or task
    return json.dumps(told, sort_keys=True, default=str)


def _task(target: str, given: Any) -> Mapping[str, Any]:
    """A task as task(index, seed) returned it. Raises: ConfigError."""
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{target}: task(index, seed) returned {type(given).__name__}, expected a dictionary."
        )
    prompt = given.get("prompt", "")
    if isinstance(prompt, str) or (isinstance(prompt, list) and all(map(_is_message, prompt))):
        return given
    raise ConfigError(
        f"{target}: task(index, seed) returned a prompt that is no text and no list of messages: "
        f"{json.dumps(prompt, default=str)[:100]}\n"
        'Return text, messages {"role": ..., "content": text}, or a task without prompt.'
    )


def _is_message(given: Any) -> bool:
    return isinstance(given, dict) and all(
        isinstance(given.get(key), str) for key in ("role", "content")
    )


def _row(name: str, index: int, task: Mapping[str, Any], seed: int) -> Row:
    prompt = task.get("prompt", ())
    return Row(
        id=f"{name}:{index}",
        prompt=prompt if isinstance(prompt, str) else tuple(prompt),
        ground_truth=task.get("ground_truth"),
        data_source=str(task.get("data_source", "")),
        extra_info={TASK: dict(task), SEED: seed},
        columns=dict(task),
    )


def _seed(*parts: Any) -> int:
    return zlib.crc32(repr(parts).encode())


def _with_openings(pool: EnvPool, rows: Sequence[Row], show: Callable[[str], None]) -> list[Row]:
    """Rows whose prompts have what reset returned: text joins the last user message."""
    openings = _for_each(pool, "opening", rows, show)
    return [
        replace(
            row,
            prompt=_joined(row, opening, pool.spec.target),
            extra_info={**row.extra_info, OPENING: opening},
        )
        for row, opening in zip(rows, openings, strict=True)
    ]


def _make_tasks(
    pool: EnvPool, numbers: Sequence[tuple[int, int]], show: Callable[[str], None]
) -> list[Any]:
    """Tasks by (index, seed), made side by side. Raises: ConfigError."""
    starts = range(0, len(numbers), TASKS_PER_REQUEST)

    def ask(part: int) -> list[Any]:
        some = numbers[starts[part] : starts[part] + TASKS_PER_REQUEST]
        limit_s = pool.spec.timeout_s * len(some)
        return pool.shared(part).request("tasks", limit_s, numbers=some)

    def shown(done: int) -> None:
        made = min(done * TASKS_PER_REQUEST, len(numbers))
        show(f"environments: {made} of {len(numbers)} tasks made")

    parts = _side_by_side(pool, ask, len(starts), shown, clear=lambda: show(""))
    return [task for part in parts for task in part]


def _for_each(
    pool: EnvPool,
    op: str,
    rows: Sequence[Row],
    show: Callable[[str], None] = lambda text: None,
) -> list[Any]:
    """Results of one request for each row, side by side. Raises: ConfigError."""
    # those that are answered side by side share the process's time
    limit_s = pool.spec.timeout_s * max(1, min(MAX_RESETS, len(rows)))

    def ask(number: int) -> Any:
        extra = rows[number].extra_info
        try:
            process = pool.shared(number)
            with process.room(op):
                return process.request(
                    op, limit_s, episode=number, task=extra[TASK], seed=extra[SEED]
                )
        except (EnvError, EnvLostError, EnvTimeoutError) as error:
            raise ConfigError(f"{pool.spec.target}: {rows[number].id}: {error}") from error

    def shown(done: int) -> None:
        show(f"environments: {done} of {len(rows)} episodes begun")

    return _side_by_side(pool, ask, len(rows), shown, clear=lambda: show(""))


def _side_by_side(
    pool: EnvPool,
    ask: Callable[[int], Any],
    count: int,
    show: Callable[[int], None],
    *,
    clear: Callable[[], None],
) -> list[Any]:
    """ask(0), ask(1), ... in env.concurrency threads. show: takes how many are done."""
    for slot in range(min(pool.spec.workers, count)):
        pool.shared(slot)  # here: a process dies with the thread that started it
    started, is_shown = time.monotonic(), False
    found: list[Any] = []
    threads = ThreadPoolExecutor(pool.spec.concurrency, thread_name_prefix="begin")
    try:
        for result in threads.map(ask, range(count)):
            found.append(result)
            if time.monotonic() - started > SILENT_S:
                show(len(found))
                is_shown = True
    finally:
        threads.shutdown(cancel_futures=True)
        if is_shown:
            clear()
    return found


def _joined(row: Row, opening: Sequence[Message], target: str) -> tuple[Message, ...]:
    prompt = row.prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    is_text = len(opening) == 1 and opening[0]["role"] == "user"
    if is_text and messages and messages[-1]["role"] == "user":
        last = messages.pop()
        opening = [{**last, "content": last["content"] + opening[0]["content"]}]
    messages = [*messages, *opening]
    if not messages or not any(message["content"] for message in messages):
        raise ConfigError(
            f"{target}: reset() returned nothing to show to the model, and {row.id} has no "
            "prompt. Return the first message, or give --data."
        )
    return tuple(messages)
