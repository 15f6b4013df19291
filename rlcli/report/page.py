"""The report as one HTML file: no script, nothing from outside, readable in any width."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcli.monitor.console import duration
from rlcli.report.charts import charts
from rlcli.report.markup import Child, Markup, clipped, join, style, tag
from rlcli.report.read import PASS, RunReport, Sample, Setting
from rlcli.report.svg import number
from rlcli.run_dir.folder import in_words
from rlcli.system.disk import gib

CSS = Path(__file__).with_name("page.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
LONGEST_VALUE, LONGEST_NAME, LONGEST_SAMPLE = 300, 120, 2500
WRAPPED = 40
"""Characters of a cell above which it may be broken anywhere."""
MAX_METRICS, MAX_FILES, MAX_VERDICTS = 120, 40, 200


def page(runs: Sequence[RunReport]) -> str:
    """The whole document."""
    title = ", ".join(clipped(run.name, LONGEST_NAME) for run in runs[:4])
    is_one = len(runs) == 1
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} - rlcli report"),
        style(CSS.read_text(encoding="utf-8")),
    )
    main = tag(
        "main",
        _overview(runs[0]) if is_one else _comparison(runs),
        tag("section", tag("h2", "Health"), *(_health(run, of_many=not is_one) for run in runs)),
        tag("section", tag("h2", "Curves"), _curves(runs)),
        *(_details(run, of_many=not is_one) for run in runs),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', main), lang='en')}\n"


# -- what came out ------------------------------------------------------------------------------


def _overview(run: RunReport) -> Markup:
    return tag(
        "header",
        tag("h1", clipped(run.name, LONGEST_NAME)),
        tag("p", _trained(run)),
        tag("p", tag("b", in_words(run.state)), _ending(run)),
        tag("dl", *(_tile(word, value, more) for word, value, more in _tiles(run)), class_="tiles"),
    )


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
    both = " mixed with other scores" if value("reward.composite") == "true" else ""
    words = (
        f"{value('algorithm.name')} ({value('algorithm.advantage')} + {value('algorithm.loss')}) "
        f"on {value('model.path')}, data {_listed(value('data.train'))}, reward by {who}{both}, "
        f"{value('train.prompts_per_step')} prompts x {value('rollout.n')} rollouts per step, "
        f"learning rate {value('train.lr')}, seed {value('run.seed')}."
    )
    return clipped(words, 4 * LONGEST_VALUE)


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


def _tile(word: str, value: str, more: str) -> Markup:
    return tag("div", tag("dt", word), tag("dd", value), tag("dd", more or None, class_="dim"))


def _comparison(runs: Sequence[RunReport]) -> Markup:
    head = ("run", "state", "step", "before", "after", "best", "reward", "time", "tokens/s")
    rows = [
        (
            clipped(run.name, LONGEST_NAME),
            in_words(run.state),
            f"{run.step:,}",
            *(_percent(f(run.scores) if run.scores else None) for f in (_first, _last, max)),
            number(run.values("reward_mean")[-1]) if run.values("reward_mean") else "-",
            duration(run.wall_s) if run.wall_s else "-",
            number(run.tokens_per_s) if run.tokens_per_s else "-",
        )
        for run in runs
    ]
    caption = "before, after, best: held-out pass@1"
    return tag(
        "header",
        tag("h1", f"{len(runs)} runs"),
        _table(head, rows, caption=caption, numbers=range(2, 9)),
        *(_sentence(run) for run in runs),
        _differences(runs),
    )


def _sentence(run: RunReport) -> Markup:
    return tag("p", tag("b", clipped(run.name, LONGEST_NAME)), ": ", _trained(run))


def _first(values: Sequence[float]) -> float:
    return values[0]


def _last(values: Sequence[float]) -> float:
    return values[-1]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _differences(runs: Sequence[RunReport]) -> Markup | None:
    """Settings that are not the same in all runs."""
    keys = list(dict.fromkeys(s.key for run in runs for s in run.settings))
    values = [{s.key: s.value for s in run.settings} for run in runs]
    rows = [
        (key, *(clipped(v.get(key, "-"), LONGEST_VALUE) for v in values))
        for key in keys
        if len({v.get(key) for v in values}) > 1
        and not key.startswith(("run.name", "run.output_dir"))
    ]
    if not rows:
        return tag("p", "All settings are the same.")
    names = [clipped(run.name, LONGEST_NAME) for run in runs]
    return _table(("setting", *names), rows, caption="Settings that differ")


# -- the course ---------------------------------------------------------------------------------


def _health(run: RunReport, *, of_many: bool) -> Markup:
    name = tag("h3", clipped(run.name, LONGEST_NAME)) if of_many else None
    if not run.verdicts:
        words = "Nothing to report." if run.steps else "There are no steps yet to judge."
        return join(name, tag("p", words))
    shown = run.verdicts[:MAX_VERDICTS]
    items = [
        tag(
            "li",
            tag("span", f"step {verdict['step']:,}", class_="step"),
            tag("p", clipped(verdict["says"], 2 * LONGEST_VALUE)),
            tag("p", clipped(verdict["knob"], 2 * LONGEST_VALUE), class_="knob"),
        )
        for verdict in shown
    ]
    more = len(run.verdicts) - len(shown)
    return join(
        name,
        tag("ul", *items, class_="verdicts"),
        tag("p", f"and {more:,} more in health.jsonl") if more else None,
    )


def _curves(runs: Sequence[RunReport]) -> Markup:
    drawn = charts(runs)
    if not drawn:
        return tag("p", "No step is finished yet.")
    return join(tag("div", *drawn, class_="charts"), *(_numbers(run) for run in runs))


def _numbers(run: RunReport) -> Markup | None:
    """The curves as a table, for those who cannot see them."""
    rows = []
    for kind in (run.steps, run.evaluations):
        for key in dict.fromkeys(key for row in kind for key in row if key != "step"):
            values = [row[key] for row in kind if key in row]
            cells = (values[0], values[-1], min(values), max(values))
            rows.append((clipped(key, LONGEST_NAME), *map(number, cells)))
    head = ("metric", "first", "last", "lowest", "highest")
    table = _table(head, rows[:MAX_METRICS], caption="", numbers=range(1, 5))
    name = clipped(run.name, LONGEST_NAME)
    return tag("details", tag("summary", f"All metrics in numbers: {name}"), table)


# -- one run in detail --------------------------------------------------------------------------


def _details(run: RunReport, *, of_many: bool) -> Markup:
    of = f": {clipped(run.name, LONGEST_NAME)}" if of_many else ""
    changed = [s for s in run.settings if s.is_changed]
    return join(
        tag("section", tag("h2", f"Samples{of}"), _samples(run.samples)),
        tag(
            "section",
            tag("h2", f"Settings{of}"),
            _settings(changed, "Not at their defaults") if changed else None,
            tag(
                "details",
                tag("summary", f"All {len(run.settings)} settings"),
                _settings(run.settings, ""),
            ),
        ),
        tag("section", tag("h2", f"Files{of}"), _files(run)),
    )


def _settings(settings: Iterable[Setting], caption: str) -> Markup:
    rows = [
        (s.key, clipped(s.value, LONGEST_VALUE), clipped(s.origin, LONGEST_VALUE), s.default or "-")
        for s in settings
    ]
    return _table(("setting", "value", "from", "default"), rows, caption=caption)


def _samples(samples: Sequence[Sample]) -> Markup:
    if not samples:
        return tag("p", "No rollouts are kept.")
    shown = [tag("div", *map(_sample, group), class_="samples") for group in _by_step(samples)]
    return join(*shown)


def _by_step(samples: Sequence[Sample]) -> list[list[Sample]]:
    steps = dict.fromkeys(sample.step for sample in samples)
    return [[s for s in samples if s.step == step] for step in steps]


def _sample(sample: Sample) -> Markup:
    row = sample.row
    reward = row.get("reward")
    ended = "cut by the length limit" if row.get("finish_reason") == "length" else "ended"
    shown = number(float(reward)) if isinstance(reward, int | float) else "none"
    facts = f"reward {shown}, {_words(row.get('length'))} tokens, {ended}"
    parts = row.get("parts")
    if isinstance(parts, Mapping) and parts:
        named = (
            f"{name} {number(float(part)) if isinstance(part, int | float) else part}"
            for name, part in parts.items()
        )
        facts += f" ({clipped(', '.join(named), LONGEST_VALUE)})"
    texts = [
        (label, row[key])
        for key, label in (
            ("prompt", "Prompt"),
            ("response", "Response"),
            ("ground_truth", "Ground truth"),
            ("reason", "Reason"),
            ("error", "Error"),
        )
        if row.get(key) is not None
    ]
    return tag(
        "article",
        tag("h3", f"step {sample.step:,}: {sample.why}"),
        tag("p", facts, class_="dim"),
        *(join(tag("h4", label), tag("pre", _words(text), dir="auto")) for label, text in texts),
    )


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return clipped(text, LONGEST_SAMPLE)


def _files(run: RunReport) -> Markup:
    checkpoints = [
        (f"checkpoints/{stored.name}", gib(stored.size), _percent(stored.score))
        for stored in run.checkpoints
    ]
    files = [(clipped(f.name, LONGEST_NAME), gib(f.size)) for f in run.files[:MAX_FILES]]
    total = gib(sum(f.size for f in run.files))
    return join(
        tag("p", "In ", tag("code", clipped(str(run.path), LONGEST_VALUE)), f", {total} in all."),
        _table(("checkpoint", "size", PASS), checkpoints, caption="Checkpoints", numbers=(1, 2))
        if checkpoints
        else tag("p", "There is no checkpoint."),
        _table(("file", "size"), files, caption="The run directory", numbers=(1,)),
    )


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str,
    numbers: Iterable[int] = (),
) -> Markup:
    """A table that scrolls inside its own box. numbers: columns that are set to the right."""
    right = set(numbers)

    def cells(row: Sequence[str], name: str) -> list[Child]:
        return [
            tag(
                "th" if i == 0 else name,
                text,
                scope="row" if name == "td" and i == 0 else "col" if name == "th" else None,
                class_="number" if i in right else "long" if len(text) > WRAPPED else None,
            )
            for i, text in enumerate(row)
        ]

    table = tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", tag("tr", *cells(head, "th"))),
        tag("tbody", *(tag("tr", *cells(row, "td")) for row in rows)),
    )
    label = caption or head[0]
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)
