"""The report as one HTML file: no script, nothing from outside, readable in any width."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from rlcli.monitor.console import duration
from rlcli.report.charts import charts
from rlcli.report.read import RunReport, Sample, Setting, clipped
from rlcli.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, number
from rlcli.run_dir.folder import in_words
from rlcli.run_dir.rollout_files import ENDS, printable
from rlcli.system.disk import gib

LONGEST_VALUE, LONGEST_NAME, LONGEST_SAMPLE = 300, 120, 2500
MAX_METRICS, MAX_FILES, MAX_VERDICTS = 120, 40, 200
SIZE = {
    "width": WIDTH,
    "height": HEIGHT,
    "left": LEFT,
    "right": WIDTH - RIGHT,
    "bottom": HEIGHT - BOTTOM,
}
TEXTS = {
    "prompt": "Prompt",
    "response": "Response",
    "ground_truth": "Ground truth",
    "reason": "Reason",
    "error": "Error",
}
Row = tuple[str, ...]


def page(runs: Sequence[RunReport]) -> str:
    """The whole document."""
    return _template().render(
        title=", ".join(_name(run) for run in runs[:4]),
        runs=[_view(run) for run in runs],
        comparison=_comparison(runs) if len(runs) > 1 else None,
        figures=charts(runs),
        size=SIZE,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html")


def _shown(value: Any) -> Any:
    """Text without control characters and marks that turn a line around."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _view(run: RunReport) -> dict[str, Any]:
    """The texts of one run."""
    files = [(clipped(f.name, LONGEST_NAME), gib(f.size)) for f in run.files[:MAX_FILES]]
    return {
        "name": _name(run),
        "trained": _trained(run),
        "state": in_words(run.state),
        "ending": _ending(run),
        "tiles": _tiles(run),
        "has_steps": bool(run.steps),
        "verdicts": [
            (
                f"{verdict['step']:,}",
                *(clipped(verdict[key], 2 * LONGEST_VALUE) for key in ("says", "knob")),
            )
            for verdict in run.verdicts[:MAX_VERDICTS]
        ],
        "more_verdicts": f"{n:,}" if (n := len(run.verdicts) - MAX_VERDICTS) > 0 else "",
        "metrics": _metrics(run),
        "samples": _samples(run.samples),
        "changed": _settings(s for s in run.settings if s.is_changed),
        "settings": _settings(run.settings),
        "path": clipped(str(run.path), LONGEST_VALUE),
        "total": gib(sum(f.size for f in run.files)),
        "files": files,
        "checkpoints": [
            (f"checkpoints/{stored.name}", gib(stored.size), _percent(stored.score))
            for stored in run.checkpoints
        ],
    }


def _name(run: RunReport) -> str:
    return clipped(run.name, LONGEST_NAME)


def _trained(run: RunReport) -> str:
    """What was trained on what, in a sentence."""
    if not run.settings:
        return "The settings of this run are not known: config.json is missing or broken."
    value = run.setting
    judge = value("reward.judge.enabled") == "true"
    model = value("reward.model", "null")
    who = value("reward.fn")
    if judge:
        who = f"the judge {value('reward.judge.model')}"
        if value("reward.judge.rule_first") == "true":
            who = f"{value('reward.fn')}, then {who}"
    elif model != "null":
        who = f"the reward model {model}"
    if value("env.path", "null") != "null" and not (judge or model != "null"):
        who = f"the environment or {who}"
    both = " mixed with other scores" if value("reward.composite") == "true" else ""
    words = (
        f"{value('algorithm.name')} ({value('algorithm.advantage')} + {value('algorithm.loss')}) "
        f"on {value('model.path')}, {_tasks(run)}, reward by {who}{both}, "
        f"{value('train.prompts_per_step')} prompts x {value('rollout.n')} rollouts per step, "
        f"learning rate {value('train.lr')}, seed {value('run.seed')}."
    )
    return clipped(words, 4 * LONGEST_VALUE)


def _tasks(run: RunReport) -> str:
    """The data, and the environment or tools of episodes."""
    data = _listed(run.setting("data.train"))
    env, tools = run.setting("env.path", "null"), run.setting("env.tools", "null")
    words = [f"data {data}"] if data else []
    words += [f"environment {env}"] if env != "null" else []
    words += [f"tools {tools}"] if tools != "null" else []
    return ", ".join(words)


def _listed(value: str) -> str:
    """`a, b` of a setting that is a list."""
    return value.strip("[]").replace('"', "")


def _ending(run: RunReport) -> str:
    of = f" of {run.num_steps:,}" if run.num_steps else ""
    reason = f": {clipped(run.reason, LONGEST_VALUE)}" if run.reason else ""
    return f" at step {run.step:,}{of}{reason}"


def _tiles(run: RunReport) -> list[tuple[str, str, str]]:
    """(what, value, remark) of the result."""
    tiles = [("steps", f"{run.step:,}", f"of {run.num_steps:,}" if run.num_steps else "")]
    if run.scores:
        first, last = run.scores[0], run.scores[-1]
        rows = run.evaluations[-1].get("eval/rows")
        of = f" of {clipped(run.val_name, LONGEST_NAME)}"
        on = f" on {rows:,.0f} prompts{of}" if rows else ""
        change = f"{100 * (last - first):+.1f} points{on}"
        tiles.insert(0, ("held-out pass@1", f"{first:.1%} \u2192 {last:.1%}", change))
    rewards = run.values("reward_mean")
    if rewards:
        shown = f"{number(rewards[0])} \u2192 {number(rewards[-1])}"
        tiles.insert(len(tiles) - 1, ("training reward", shown, "first and last step"))
    if run.wall_s:
        tiles.append(("time", duration(run.wall_s), "steps and evaluations"))
    if run.tokens_per_s:
        tiles.append(("speed", number(run.tokens_per_s), "sampled tokens per second"))
    return tiles


def _comparison(runs: Sequence[RunReport]) -> dict[str, Any]:
    """The table of several runs, and the settings that are not the same in all."""
    firsts: tuple[Callable[[Sequence[float]], float], ...] = (lambda s: s[0], lambda s: s[-1], max)
    rows = [
        (
            _name(run),
            in_words(run.state),
            f"{run.step:,}",
            *(_percent(choose(run.scores) if run.scores else None) for choose in firsts),
            number(run.values("reward_mean")[-1]) if run.values("reward_mean") else "-",
            duration(run.wall_s) if run.wall_s else "-",
            number(run.tokens_per_s) if run.tokens_per_s else "-",
        )
        for run in runs
    ]
    keys = list(dict.fromkeys(s.key for run in runs for s in run.settings))
    values = [{s.key: s.value for s in run.settings} for run in runs]
    differences = [
        (key, *(clipped(v.get(key, "-"), LONGEST_VALUE) for v in values))
        for key in keys
        if len({v.get(key) for v in values}) > 1
        and not key.startswith(("run.name", "run.output_dir"))
    ]
    head = ("run", "state", "step", "before", "after", "best", "reward", "time", "tokens/s")
    return {"head": head, "rows": rows, "differences": differences}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _metrics(run: RunReport) -> list[Row]:
    """The curves as a table, for those who cannot see them."""
    rows: list[Row] = []
    for kind in (run.steps, run.evaluations):
        for key in dict.fromkeys(key for row in kind for key in row if key != "step"):
            values = [row[key] for row in kind if key in row]
            cells = (values[0], values[-1], min(values), max(values))
            rows.append((clipped(key, LONGEST_NAME), *map(number, cells)))
    return rows[:MAX_METRICS]


def _settings(settings: Iterable[Setting]) -> list[Row]:
    return [
        (s.key, clipped(s.value, LONGEST_VALUE), clipped(s.origin, LONGEST_VALUE), s.default or "-")
        for s in settings
    ]


def _samples(samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
    """By step."""
    steps = dict.fromkeys(sample.step for sample in samples)
    return [[_sample(s) for s in samples if s.step == step] for step in steps]


def _sample(sample: Sample) -> dict[str, Any]:
    row = sample.row
    reward = row.get("reward")
    ended = ENDS.get(str(row.get("finish_reason")), "ended")
    shown = number(float(reward)) if isinstance(reward, int | float) else "none"
    facts = f"reward {shown}, {_words(row.get('length'))} tokens, {ended}"
    if row.get("turns"):
        facts += f", {_words(row['turns'])} turns"
    parts = row.get("parts")
    if isinstance(parts, Mapping) and parts:
        named = (
            f"{name} {number(float(part)) if isinstance(part, int | float) else part}"
            for name, part in parts.items()
        )
        facts += f" ({clipped(', '.join(named), LONGEST_VALUE)})"
    texts: list[tuple[str, str, bool]] = []
    for key, label in TEXTS.items():
        if key == "response" and isinstance(row.get("dialogue"), list):
            texts += _dialogue(row["dialogue"])
        elif row.get(key) is not None:
            texts.append((label, _words(row[key]), False))
    return {"step": f"{sample.step:,}", "why": sample.why, "facts": facts, "texts": texts}


def _dialogue(messages: Sequence[Any]) -> list[tuple[str, str, bool]]:
    """(role, text, whether the environment wrote it) of an episode's messages."""
    found: list[tuple[str, str, bool]] = []
    for message in messages:
        if isinstance(message, Mapping):
            role = _words(message.get("role", ""))
            name = f" {_words(message['name'])}" if message.get("name") else ""
            label = clipped(f"{role}{name}", LONGEST_NAME).capitalize()
            found.append((label, _words(message.get("content", "")), role != "assistant"))
    return found


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return clipped(text, LONGEST_SAMPLE)
