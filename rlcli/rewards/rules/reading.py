"""Parses an answer in LaTeX as a sympy object, completely or not at all.

math-verify searches a text for something that parses and drops the rest: it reads
`1, 2, \\ldots, n` as 1 and `10 \\text{ km east}` as 10. Here its grammar must parse the whole text.
Texts outside the grammar are refused first: unknown commands, words, and notation that the grammar
accepts with another meaning.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.sets import FiniteSet as SetInOrder
from math_verify.grader import should_treat_as_complex
from sympy import Basic, Derivative, Eq, Expr, I, MatrixBase, Symbol, Tuple, nan, zoo
from sympy.concrete.expr_with_limits import ExprWithLimits

_COMMAND_LIST = (
    "frac sqrt binom choose over times cdot div pi infty emptyset pm mp cup cap setminus in notin "
    "subseteq supseteq le leq leqslant ge geq geqslant lt gt ne neq equiv circ degree angle "
    "triangle quad qquad sin cos tan csc sec cot arcsin arccos arctan arccsc arcsec arccot sinh "
    "cosh tanh log ln exp max min gcd lcm det lim sum prod int to mod lfloor rfloor lceil rceil "
    "lvert rvert vert langle rangle lbrace rbrace lbrack rbrack begin end partial alpha beta "
    "gamma Gamma delta Delta epsilon varepsilon zeta eta theta Theta vartheta iota kappa lambda "
    "Lambda mu nu xi Xi Pi rho sigma Sigma tau upsilon phi Phi varphi chi psi Psi omega Omega ell "
    "hbar imath jmath"
)
_COMMANDS = frozenset(_COMMAND_LIST.split())
"""Commands that the grammar parses correctly. It parses `\\cdots` as `\\cdot` and an s."""
_STYLES = r"\\(?:text(?:bf|rm|it|normal|sf|tt)?|math(?:rm|bf|it|sf|tt|normal)|mbox|boldsymbol|bm)"
_STYLED_LETTER = re.compile(_STYLES + r"\s*\{\s*([A-Za-z]|\\[ij]math)\s*\}")
_FUNCTION = re.compile(
    r"\\(?:operatorname\*?|mathrm|text|mbox)\s*\{\s*"
    r"(?:(arc)?(sin|cos|tan|cot|sec|csc)|(sinh|cosh|tanh|log|ln|exp|max|min(?=\s*\}\s*[_({\[\\A-Za-z])|gcd|lcm|det)"
    r"|(tg|ctg|arctg|arcctg|lg|sh|ch|th))\s*\}"
)
_LOCAL_NAMES = {"tg": "tan", "ctg": "cot", "arctg": "arctan", "arcctg": "arccot", "lg": "log"}
_LOCAL_NAMES |= {"sh": "sinh", "ch": "cosh", "th": "tanh"}
_LOCAL_FUNCTION = re.compile(r"\\(tg|ctg|arctg|arcctg|lg|sh|ch|th)(?![A-Za-z])")
_ACCENTED = re.compile(
    r"\\(?:vec|hat|bar|tilde|dot|ddot|overline|overrightarrow|widehat|mathcal|mathbb|mathfrak)"
    r"\s*\{\s*\\?[A-Za-z]{1,5}\s*\}"
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{(?:[pbv]?matrix|array)\}(?:\{[clr|]*\})?")
_SYNONYMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\varnothing(?![A-Za-z])|∅", r"\\emptyset "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:text|mathrm|mbox)\s*\{\s*(?:positive )?infinity\s*\}|(?<![A-Za-z\\])infinity\b|∞",
         r"\\infty "),
        (r"\\(?:mathrm|text|operatorname)\s*\{d\}", "d"),
        (r"~(?!=)|(?<!\\)\\[,;:! ]", " "),
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|cot|log|ln|pi)(?![A-Za-z])", r"\\\1 "),
        (r"\\(?:lVert|rVert|Vert)(?![A-Za-z])", r"\\|"),
        (r"\\(?:ldotp|colon)(?![A-Za-z])", ":"),
    )
]  # fmt: skip
_OTHER_MEANING = re.compile(
    r"['\"’′]"  # a derivative, minutes of arc, inches: taken for a transpose
    r"|[A-Z)}\]]\s*\^\s*(?:T(?![A-Za-z])|\{\s*T\s*\})"  # a transpose: taken for nothing
    r"|!\s*!"  # a double factorial: taken for (n!)!
    r"|\d\s*_"  # a number base: ignored
    r"|\)\s*_|\\[()|]"
    r"|:[^:=,]*:"  # a ratio of three: taken for two divisions
    r"|^\s*\d+(?:\s*-\s*\d+)+\s*$|^\s*\d+(?:\s*/\s*\d+){2,}\s*$"  # a date, a range
    r"|\.\s*\.|\.\s*$|[?@#&~]\s*$"
)
_WORD = re.compile(r"[A-Za-z]{4,}|[^\x00-\x7fα-ωΑ-Ω°·×÷−±∪∩≤≥≠√ℝℤℕℚℂ∈∖]")
_SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])|[±∓]")
_NORMAL = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)

logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)


@lru_cache(maxsize=4096)
def read(answer: str) -> Any | None:
    """A tidied answer as a sympy object; None if any part of it cannot be parsed.

    Cached, because a group of rollouts shares one reference answer.
    """
    text = _canonical(answer)
    signs = list(_SIGNS.finditer(text))
    if not signs:
        return _parse(text)
    if not all(sign[0] == signs[0][0] for sign in signs) and len(signs) > 2:
        return None
    # The grammar has no \pm inside fractions.
    both = [_parse(_SIGNS.sub(replace, text)) for replace in (_upper_sign, _lower_sign)]
    if any(value is None or not isinstance(value, Basic) for value in both):
        return None
    members = [value.args if isinstance(value, SetInOrder) else (value,) for value in both]
    return SetInOrder(*members[0], *members[1])


def _upper_sign(sign: re.Match[str]) -> str:
    return "+" if sign[0] in ("\\pm", "±") else "-"


def _lower_sign(sign: re.Match[str]) -> str:
    return "-" if sign[0] in ("\\pm", "±") else "+"


def _canonical(answer: str) -> str:
    """One spelling of each command, and letters without a typeface: `\\mathrm{i}` as i."""
    text = answer
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    text = _STYLED_LETTER.sub(r" \1 ", text)
    text = re.sub(r"\\[ij]math(?![A-Za-z])", lambda name: name[0][1], text)
    return re.sub(r"(?<!\\)%", r"\\%", text).strip()


def with_function_commands(text: str) -> str:
    """The text with `\\operatorname{arcsin}` as `\\arcsin` and `\\tg` as `\\tan`."""
    text = _FUNCTION.sub(_function_command, text)
    return _LOCAL_FUNCTION.sub(lambda name: "\\" + _LOCAL_NAMES[name[1]], text)


def _function_command(name: re.Match[str]) -> str:
    if name[4]:
        return "\\" + _LOCAL_NAMES[name[4]] + " "
    return "\\" + (name[3] or (name[1] or "") + name[2]) + " "


def _parse(text: str) -> Any | None:
    if not _is_known(text):
        return None
    normal = normalize_latex(text, _NORMAL)
    letters = _ENVIRONMENT.sub("", re.sub(r"\\[A-Za-z]+", "", normal))
    # By default the grammar parses R as r, and R - r as 0.
    has_both_cases = any(letter.lower() in letters for letter in set(letters) if letter.isupper())
    config = ConversionConfig(lowercase_symbols=not has_both_cases)
    try:
        value = latex2sympy(
            normal,
            is_real=not should_treat_as_complex(normal),
            normalization_config=None,
            conversion_config=config,
        )
    except Exception:  # the grammar raises plain Exception, sympy many types
        return None
    return _with_imaginary_unit(value) if _is_whole(value) else None


def _with_imaginary_unit(value: Any) -> Any:
    """The value with the letter i as the imaginary unit, unless i may be an index of a sum."""
    if isinstance(value, SetInOrder):
        return SetInOrder(*map(_with_imaginary_unit, getattr(value, "_unsorted_args", value.args)))
    if isinstance(value, Tuple):
        return Tuple(*map(_with_imaginary_unit, value.args))
    if isinstance(value, Eq):
        return Eq(*map(_with_imaginary_unit, value.args), evaluate=False)
    if not isinstance(value, Expr | MatrixBase) or value.atoms(ExprWithLimits):
        return value
    letters = [symbol for symbol in value.free_symbols if str(symbol) == "i"]
    return value.subs([(letter, I) for letter in letters]) if letters else value


def _is_known(text: str) -> bool:
    """Whether a text has only notation that the grammar parses correctly."""
    if text.count("{") != text.count("}") or text.count("|") % 2:
        return False
    plain = _ENVIRONMENT.sub(" ", _ACCENTED.sub(" x ", text))
    if _OTHER_MEANING.search(plain):
        return False
    commands = re.findall(r"\\([A-Za-z]+)", plain)
    words = re.sub(r"\\[A-Za-z]+|_\{[A-Za-z]{1,6}\}", " ", plain)
    return all(command in _COMMANDS for command in commands) and not _WORD.search(words)


def _is_whole(value: Any) -> bool:
    """Whether parsing has kept the meaning: `dy/dx` of a plain symbol y evaluates to 0."""
    if not isinstance(value, Basic | MatrixBase):
        return False
    if isinstance(value, Basic) and value.has(nan, zoo):
        return False
    derivatives = value.atoms(Derivative)
    return not any(
        isinstance(derivative, Derivative) and isinstance(derivative.expr, Symbol)
        for derivative in derivatives
    )
