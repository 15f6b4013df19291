"""A trial of a reward, and a check of its judges, as text of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlcli.run_dir.rollout_files import printable
from rlcli.terminal.text import WIDTH, in_columns, wrap

SHOWN_ERRORS = 3
SHOWN_ROWS = 10
KINDS = {"right": "own answer", "wrong": "another row's answer", "given": "response"}


def trial_lines(report: Mapping[str, Any]) -> list[str]:
    """What `reward test` prints, but for the verdicts."""
    lines = wrap(f"{report['reward']}: {report['rows']:,} rows of {report['data']}")
    lines += in_columns(_table(report), right=(1, 2, 3, 4))
    lines += _comparison(report)
    again = report["repeatability"]
    if again is not None:
        lines += wrap(
            f"scored {again['times']} times: {again['equal']:.1%} of {again['responses']} "
            f"responses get the same score, the largest difference is {again['largest']:.3g}"
        )
    scale = report["normalize"]
    if scale is not None:
        lines += wrap(
            "for reward.normalize=fixed: "
            f"reward.normalize_mean={scale['mean']:.6g} reward.normalize_std={scale['std']:.6g}"
        )
    lines += wrap(_cost(report))
    for entry in report["errors"][:SHOWN_ERRORS]:
        lines += wrap(cut(f"unscored, {entry['count']} times: {entry['error']}", 4 * WIDTH))
    if len(report["errors"]) > SHOWN_ERRORS:
        lines.append(f"... and {len(report['errors']) - SHOWN_ERRORS} other errors")
    return lines + _disagreements(report)


def _table(report: Mapping[str, Any]) -> list[list[str]]:
    rows = [["", "mean", "min", "max", "unscored"]]
    is_tried = "wrong_scores" in report
    sides = [("own answer" if is_tried else "responses", "", "unscored")]
    if is_tried:
        sides.append(("another row's answer", "wrong_", "wrong_unscored"))
    for name, prefix, unscored in sides:
        numbers = (report[f"{prefix}{of}"] for of in ("mean", "min", "max"))
        rows.append([name, *(_number(number) for number in numbers), f"{report[unscored]:,}"])
    return rows


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _comparison(report: Mapping[str, Any]) -> list[str]:
    """AUC and agreement, where there is anything to compare with."""
    if "wrong_scores" in report:
        if report["auc"] is None:
            return []
        lines = wrap(
            f"AUC {_number(report['auc'])}: how often an own answer scores above another row's "
            "(0.5: no difference)"
        )
        lines += _agreement(report, "own answers get 0.5 or more, others less")
        if report["equal_answers"]:
            lines += wrap(
                f"{report['equal_answers']:,} rows: the next row's answer is the same to the rule, "
                "so that another one was taken"
            )
        return lines
    if not report["label"]:
        return []
    lines = wrap(
        f"{report['label']}: {report['labelled']:,} labels and scores, on average "
        f"{_number(report['label_mean'])}"
    )
    lines += wrap(
        f"AUC {_number(report['auc'])}: how often the higher label has the higher score; "
        f"Spearman {_number(report['spearman'])}"
    )
    return lines + _agreement(report, "label 1 gets 0.5 or more, label 0 less")


def _agreement(report: Mapping[str, Any], meaning: str) -> list[str]:
    if report["agreement"] is None:
        return []
    return wrap(f"agreement {report['agreement']:.2%}: {meaning}")


def _cost(report: Mapping[str, Any]) -> str:
    p95, cost = report["p95_s"], report["cost_usd"]
    parts = [f"{report['wall_s']:.1f} s in all"]
    if p95 is not None:
        parts.append(f"95 % of the responses took {_seconds(p95)} or less")
    parts.append(f"{report['timeouts']:,} timeouts")
    if cost is None:
        parts.append("cost unknown (no price for the judge)")
    elif report["is_judged"]:
        each = report["cost_per_1000_usd"]
        parts.append(
            f"${cost:.4f}" + ("" if each is None else f", ${each:.4g} per 1,000 responses")
        )
    return "; ".join(parts)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _disagreements(report: Mapping[str, Any]) -> list[str]:
    rows: Sequence[Mapping[str, Any]] = report["disagreements"]
    if not rows:
        return []
    of = f", {SHOWN_ROWS} of {len(rows):,} (--json has all)" if len(rows) > SHOWN_ROWS else ""
    lines = [f"looks wrong{of}:"]
    for row in rows[:SHOWN_ROWS]:
        label = "" if row["label"] is None else f", label {row['label']:g}"
        own = f", the own one {_number(row['own_score'])}" if "own_score" in row else ""
        head = f"{row['id']}: {KINDS[row['kind']]} scores {_number(row['score'])}{own}{label}"
        lines.append(cut(f"  {head}", WIDTH))
        for name in ("response", "ground_truth", "reason", "error"):
            if row[name] is not None:
                lines.append(cut(f"    {name.replace('_', ' ')}: {row[name]}", WIDTH))
    return lines


def cut(text: str, columns: int) -> str:
    """One line of at most so many columns, blanks at the left kept."""
    from rich.cells import cell_len, chop_cells

    indent = text[: len(text) - len(text.lstrip())]
    line = indent + printable(" ".join(text.split()))
    if cell_len(line) <= columns:
        return line
    return f"{chop_cells(line, columns - 4)[0]} ..."


def judge_lines(report: Mapping[str, Any]) -> list[str]:
    """What `reward judge-check` prints of one judge."""
    lines = wrap(
        f"{report['provider']} {report['model']} at {report['base_url']}, key from {report['key']}"
    )
    if report["score"] is None:
        return [
            *lines,
            *wrap(f"no score in {_seconds(report['seconds'])}: {report['error']}", "  "),
        ]
    low, high = report["scale"]
    lines += wrap(
        f"{report['answered_by'] or 'a model without a name'} answers in "
        f"{_seconds(report['seconds'])}: {report['score']:g} on {low} to {high}",
        "  ",
    )
    if report["reason"]:
        lines.append(cut(f"  reason: {report['reason']}", WIDTH))
    cost = report["usd_per_1000_calls"]
    price = "price unknown" if cost is None else f"${cost:.4g} per 1,000 such calls"
    lines.append(f"  {report['input_tokens']} tokens in, {report['output_tokens']} out, {price}")
    if report["canaries"] is not None:
        scores = ", ".join(_number(score) for score in report["canaries"])
        lines.append(f"  answers known to be bad score {scores} (0 to 1)")
    return lines
