"""The built-in rules by name, and the rule of every data source; none is imported before use."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from rlcli.rewards.rules.undecided import NoRule

ScoreFunction = Callable[..., Any]

RULES = ("gsm8k", "math", "math_reasoning", "code", "choice", "exact", "format", "length")
"""Each is a module of this package with `compute_score`."""
RUNS_CODE = ("code",)
"""Rules that run code which the model wrote: they take `sandbox` and `limit_s` besides."""

RULE_OF_SOURCE: dict[str, str] = {
    **{name: name for name in RULES},
    "openai/gsm8k": "gsm8k",
    "lighteval/math": "math",
    "digitallearninggmbh/math-lighteval": "math",
    "huggingfaceh4/math-500": "math",
    "math-500": "math",
    "math500": "math",
    "hendrycks/competition_math": "math",
    "eleutherai/hendrycks_math": "math",
    "math_dapo": "math",
    "math_dapo_reasoning": "math",
    "humaneval": "code",
    "openai_humaneval": "code",
    "openai/openai_humaneval": "code",
    "evalplus/humanevalplus": "code",
    "mbpp": "code",
    "google-research-datasets/mbpp": "code",
    "evalplus/mbppplus": "code",
    "apps": "code",
    "taco": "code",
    "codecontests": "code",
    "codeforces": "code",
    "mmlu": "choice",
    "cais/mmlu": "choice",
    "mmlu_pro": "choice",
    "tiger-lab/mmlu-pro": "choice",
    "allenai/ai2_arc": "choice",
    "arc": "choice",
    "gpqa": "choice",
    "idavidrein/gpqa": "choice",
    "tau/commonsense_qa": "choice",
    "commonsense_qa": "choice",
    "ceval": "choice",
    "ceval/ceval-exam": "choice",
    "cmmlu": "choice",
    "haonan-li/cmmlu": "choice",
    "sums": "exact",
}
"""data_source in lower case to rule. AIME sets come under many names: see `rule_name`."""


def rule_name(data_source: str) -> str:
    """The rule that grades rows of this data source.

    Raises:
        NoRule: no built-in rule knows it.
    """
    name = data_source.lower()
    if name.startswith("aime"):
        return "math"
    if name in RULE_OF_SOURCE:
        return RULE_OF_SOURCE[name]
    found = f"data_source {data_source!r}" if data_source else "a row without data_source"
    close = difflib.get_close_matches(name, list(RULE_OF_SOURCE), n=3, cutoff=0.5)
    hint = f" (nearest: {', '.join(close)})" if close else ""
    raise NoRule(
        f"no built-in rule grades {found}{hint}.\n"
        f"Set --reward (reward.fn) to one of {', '.join(RULES)} for all rows, or to your own "
        "file.py:function."
    )


def has_rule(data_source: str) -> bool:
    """Whether a built-in rule grades rows of this data source."""
    name = data_source.lower()
    return name in RULE_OF_SOURCE or name.startswith("aime")


def choose(data_source: str) -> ScoreFunction:
    """The `compute_score` that grades rows of this data source.

    Raises:
        NoRule: no built-in rule knows it.
    """
    return load_rule(rule_name(data_source)).compute_score


def load_rule(name: str) -> ModuleType:
    """The module of a rule in `RULES`."""
    return importlib.import_module(f"rlcli.rewards.rules.{name}")


def reference_problem(
    name: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None
) -> str | None:
    """Why a rule of `RULES` cannot grade a row with this ground truth; None when it can."""
    if name == "format":
        return None
    if ground_truth is None and name != "length":
        return "there is no ground_truth"
    problem: str | None = load_rule(name).reference_problem(ground_truth, extra_info)
    return problem


def text_only(data_source: str, ground_truth: Any) -> str | None:
    """A row's reference answer if it is only compared as text, because its value is not parsed."""
    if rule_name(data_source) not in ("math", "math_reasoning"):
        return None
    if reference_problem(rule_name(data_source), ground_truth):
        return None
    note: str | None = load_rule("math").gold_note(ground_truth)
    return note
