"""What people get wrong: commands, variables, options and files of the guides, spoilt once each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from guide_texts import CONFIGS, commands
from hypothesis import strategies as st

from rlcli.compat.verl.keys import NOT_USED
from rlcli.config.names import ALIASES, ENV_KEYS, FLAG_KEYS, SHORT_FORMS
from rlcli.config.schema import defaults

KEYS = sorted({*defaults(), *ALIASES, *NOT_USED, *SHORT_FORMS})
FILES = [
    *CONFIGS.values(),
    "algorithm:\n  adv_estimator: rloo  # comment\n  kl_ctrl.kl_coef: 0.001\n",
    'trainer:\n  logger: ["console","wandb"]\n  save_freq: -1\n  total_epochs: 15\n',
    "data:\n  train_files:\n    - $HOME/a.parquet\n    - $HOME/b.parquet\n  truncation: 'error'\n",
    "composite_reward:\n  enable: true\n  weights:\n    rm_score: 0.7\n    rule_score: 0.3\n",
    "actor_rollout_ref.actor.optim.lr: 5e-7\nrollout.n: 8\n",
]
NASTY = [
    "", " ", "null", "~", "true", "False", "yes", "0", "-1", "1e-6", "1e400", "nan", "-inf", "1_0",
    "0x10", "1:30", "abc", "8.0", "1e3", "９", "日本語", "\u202e", "a\0b", "a\nb\nc\nd\ne", "\r\n",
    "\x1b[31m", "'", '"', "[", "]", "{", "}", "[[[[", "{{{{a}}}}", "[a,b", "{a: 1", "['a','b']",
    "{a: 1}", "{a: {b: {c: 1}}}", "[1, [2, [3]]]", "${", "${}", "${x}", "${rollout.n}",
    "${actor_rollout_ref.model.path}", "${model.path}", "${oc.env:HOME}", "${oc.env:NOPE,3}",
    "$HOME", "$NOPE", "~/x", "#", "a # b", "&a *a", "*a", "!!python/object:os.system", "=", "a=b",
    "\\", "\\n", "%s", "{0}", "x" * 5000, "[" * 400, "9" * 400, "1" * 5000, "\ud800", "\uffff",
    "[" * 400 + "]" * 400, "{a: " * 400 + "1" + "}" * 400, "1__0", "0_.7", "1_", "_1", "1e", "1e-",
    "[&a [1], *a]", "{? a: b}", "{[a]: b}", "{a: 1, a: 2}", "{a.b: 1, a: {b: 2}}", "2024-01-01",
    "!!int x", "!x y", "| a", "%YAML 1.2", "--- a", "...", "\t", "\ufeff", "\x85", "\u2028a\u2028b",
    "-", "--", "?", ": ", "- a", "@file", "1,2", "None", "1e-6,1e-5",
]  # fmt: skip


class Case(NamedTuple):
    """Arguments of `resolve`, and the names one of which an error has to say."""

    arguments: dict[str, Any]
    culprits: tuple[str, ...]


def _spoilt(text: str) -> st.SearchStrategy[str]:
    """`text` with a character or two dropped, doubled, swapped or put in."""
    place = st.integers(0, max(0, len(text) - 1))
    odd = st.sampled_from(list("._=+-~ #'\"[]{}:,$\\\0\n\t0aZé日"))
    return st.one_of(
        place.map(lambda i: text[:i] + text[i + 1 :]),
        place.map(lambda i: text[:i] + text[i : i + 1] + text[i:]),
        place.map(lambda i: text[:i] + text[i + 1 : i + 2] + text[i : i + 1] + text[i + 2 :]),
        st.tuples(place, odd).map(lambda pair: text[: pair[0]] + pair[1] + text[pair[0] :]),
        st.sampled_from([text.upper(), text + "x" * 3000, text * 2, text[::-1], ""]),
    )


values = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=12),
    st.integers(-5, 5000).map(str),
    st.floats().map(str),
    st.sampled_from([word for given in commands() for word in given]).flatmap(
        lambda word: _spoilt(word.partition("=")[2])
    ),
)


@st.composite
def overrides(draw: st.DrawFn) -> Case:
    """A command of the guides with one argument put in or spoilt."""
    given = list(draw(st.sampled_from(commands())))
    if draw(st.booleans()):
        place = draw(st.integers(0, len(given) - 1))
        given[place] = bad = draw(_spoilt(given[place]))
    else:
        bad = f"{draw(st.sampled_from(KEYS))}={draw(values)}"
        given.append(bad)
    return Case({"overrides": given}, (bad.partition("=")[0].strip().lstrip("+"),))


@st.composite
def variables(draw: st.DrawFn) -> Case:
    """A variable of the guides with any value."""
    name = draw(st.sampled_from(sorted(ENV_KEYS)))
    return Case({"env": {name: draw(values), "HOME": "/home/ann"}}, (name,))


@st.composite
def flags(draw: st.DrawFn) -> Case:
    """An option with any value that a shell or a program may give it."""
    name = draw(st.sampled_from(sorted(FLAG_KEYS)))
    odd = st.one_of(values, st.booleans(), st.integers(), st.floats(), st.lists(values, max_size=3))
    return Case({"flags": {name: draw(odd)}}, (name,))


@st.composite
def files(draw: st.DrawFn) -> Case:
    """A file of the guides, spoilt, or one key with any value."""
    if draw(st.booleans()):
        text = draw(st.sampled_from(FILES).flatmap(_spoilt))
    else:
        text = f"{draw(st.sampled_from(KEYS))}: {draw(values)}\n"
    return Case({"files": [Path("x.yaml")], "text": text}, ("x.yaml",))


OPTIONS = [
    ["--algo", "grpo"], ["--model", "Qwen/Qwen2.5-7B"], ["--epochs", "20"], ["--lr", "5e-7"],
    ["--kl_coef", "0.01"], ["--batch_size", "128"], ["--n_gpus", "8"], ["--use_api_reward"],
    ["--rm_api_type", "openai"], ["--rm_model", "gpt-4o-mini"], ["--rm_prompt_preset", "math"],
    ["--seed", "1"], ["--max-steps", "2"], ["--resume", "never"],
]  # fmt: skip


@st.composite
def command_lines(draw: st.DrawFn) -> Case:
    """What is typed after `rlcli train`: options or a command of the guides, spoilt once."""
    if draw(st.booleans()):
        case = draw(overrides())
        words = [word for word in case.arguments["overrides"] if not word.startswith("-")]
        return Case({"words": words}, case.culprits)
    option = list(draw(st.sampled_from(OPTIONS)))
    name = option[0]
    if draw(st.booleans()):
        option[0] = draw(_spoilt(name))
    option[1:] = [draw(values) for _ in option[1:]]
    said = option[0].partition("=")[0]
    culprits = (name, name.replace("_", "-"), said if said[:2] == "--" else said[:2], *option[1:])
    return Case({"words": option}, culprits)
