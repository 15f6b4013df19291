"""Code is found in a response, its tests in a row, and HumanEval is graded as it should be."""

from __future__ import annotations

import ast
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlcli.data.convert import CONVERTERS
from rlcli.rewards.base import score_all
from rlcli.rewards.process_pool import ScorerPool
from rlcli.rewards.rules import code, reference_problem
from rlcli.rewards.rules.code_blocks import find_code, helpers_of
from rlcli.rewards.rules.undecided import InvalidReference, Undecided
from rlcli.rewards.sandbox import Sandbox, SandboxFailed
from rlcli.types import Prompt, Rollout

PREFIX = 'from typing import List\n\n\ndef first(xs: List[int]) -> int:\n    """The first."""\n'
WHOLE = "def first(xs):\n    return xs[0]\n"
CHECK = "def check(candidate):\n    assert candidate([3, 4]) == 3\n"


def score(box: Sandbox, response: str, gold: Any, **extra_info: Any) -> float:
    return code.compute_score("code", response, gold, extra_info, sandbox=box, limit_s=60.0)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        (f"Sure.\n```python\n{WHOLE}```\nDone.", WHOLE),
        (f"```\n{WHOLE}```", WHOLE),
        (f"```py\n{WHOLE}", WHOLE),
        (f"```python\n{WHOLE}```\nand\n```bash\nls\n```", WHOLE),
        (f"```python\n{WHOLE}```\nUse it:\n```python\nprint(first([1]))\n```", WHOLE),
        (f"```python\ndef first(xs): return 0\n```\nno:\n```python\n{WHOLE}```", WHOLE),
        (f"<think>```python\ndef first(xs): return 9\n```</think>\n```python\n{WHOLE}```", WHOLE),
        (f"  ```python\n{WHOLE}  ```", WHOLE),
        ("1. So:\n   ```python\n   def first(xs):\n       return xs[0]\n   ```", WHOLE),
        ("```python\n    y = xs\n    return y[0]\n```", PREFIX + "    y = xs\n    return y[0]\n"),
        (WHOLE, WHOLE),
        ("    return xs[0]\n", PREFIX + "    return xs[0]\n"),
        ("return xs[0]", PREFIX + "    return xs[0]\n"),
        ("```python\n    return xs[0]\n```", PREFIX + "    return xs[0]\n"),
        ("    return xs[0]\n\nprint(first([1]))\nI hope", PREFIX + "    return xs[0]\n\n"),
        ("The first of the list, obviously.", None),
        ("", None),
    ],
)
def test_the_code_of_a_response_is_found(response: str, found: str | None) -> None:
    assert find_code(response, ["first"], prefix=PREFIX) == found


def test_without_a_name_the_last_block_counts_and_bare_text_must_be_python() -> None:
    assert find_code("```python\na = 1\n```\n```python\nb = 1\n```") == "b = 1\n"
    assert find_code("x = 1\n") == "x = 1\n"
    assert find_code("- So:\n  ```\n  y = 1\n  ```") == "y = 1\n"
    assert find_code("Let us print(x) it") is None
    assert find_code("```\ndef broken(:\n```") == "def broken(:\n"


def test_the_prompts_imports_and_helpers_are_kept_and_its_empty_function_is_not() -> None:
    prefix = f"import math\n\ndef helper(x):\n    return x\n\n{PREFIX}"
    assert helpers_of(prefix, "first") == (
        "import math\n\ndef helper(x):\n    return x\nfrom typing import List"
    )
    assert helpers_of("from typing import List\ndef open(", "open") == "from typing import List"


def test_humaneval_rows_are_graded_with_and_without_their_last_line(box: Sandbox) -> None:
    row = {"entry_point": "first", "prefix": PREFIX}
    assert score(box, WHOLE, f"{CHECK}\ncheck(first)", **row) == 1.0
    assert score(box, WHOLE, CHECK, **row) == 1.0
    assert score(box, "    return xs[0]", CHECK, **row) == 1.0
    assert score(box, "    return xs[-1]", CHECK, **row) == 0.0
    assert score(box, WHOLE, f"{CHECK}\ncheck(first)") == 1.0
    typed = "def first(xs: List[int]) -> int:\n    return xs[0]"
    assert score(box, typed, CHECK, **row) == 1.0
    with pytest.raises(InvalidReference, match="never call it"):
        score(box, WHOLE, CHECK)


def test_mbpp_rows_are_lists_or_lines_of_asserts(box: Sandbox) -> None:
    asserts = ["assert first([1, 2]) == 1", "assert set(map(str, [first([2])])) == {'2'}"]
    for gold in (asserts, "\n".join(asserts), json.dumps(asserts)):
        assert score(box, f"```python\n{WHOLE}```", gold) == 1.0
        assert score(box, "def first(xs): return 1", gold) == 0.0
    assert score(box, "def third(xs): return 1", asserts) == 0.0


def test_the_setup_of_mbpp_rows_comes_first(box: Sandbox) -> None:
    tests = ["assert math.isclose(half(3), x)"]
    setup = {"test_imports": ["import math"], "test_setup_code": "x = 1.5"}
    assert score(box, "def half(x): return x / 2", tests, **setup) == 1.0
    assert score(box, "def half(x): return x / 3", tests, **setup) == 0.0


def test_modules_and_builtins_of_the_tests_are_not_the_codes_to_replace(box: Sandbox) -> None:
    fake = "class math:\n  isclose = lambda *x: True\ndef half(x): return 0\n"
    assert score(box, fake, ["assert math.isclose(half(3), 1.5)"]) == 0.0
    fake = "def sorted(x): return [1, 2]\ndef pair(): return [9]\n"
    assert score(box, fake, ["assert sorted(pair()) == [1, 2]"]) == 0.0


def test_tests_in_functions_or_under_a_main_guard_run_too(box: Sandbox) -> None:
    for gold in (
        "def test_first():\n    assert first([1, 2]) == 1",
        "if __name__ == '__main__':\n    assert first([1, 2]) == 1",
    ):
        assert score(box, WHOLE, gold) == 1.0
        assert score(box, "def first(xs): return 9", gold) == 0.0


def test_a_function_may_have_the_name_of_a_module(box: Sandbox) -> None:
    assert score(box, "def select(x): return x", ["assert select(3) == 3"]) == 1.0


def test_a_function_may_have_the_name_of_a_builtin(box: Sandbox) -> None:
    tests = ["assert sum(10, 15) == 6", "assert sum(100, 150) == 93"]
    common = (
        "def sum(a, b):\n  return __import__('builtins').sum("
        "d for d in range(1, min(a, b) + 1) if a % d == b % d == 0)"
    )
    assert score(box, common, tests) == 1.0
    assert score(box, "def sum(a, b): return 6", tests) == 0.0


def test_rows_of_inputs_and_outputs_are_programs(box: Sandbox) -> None:
    gold = {"inputs": ["1\n2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}
    adds = "```python\nprint(int(input()) + int(input()))\n```"
    for form in (gold, json.dumps(gold)):
        assert score(box, adds, form) == 1.0
        assert score(box, "print(3)", form) == 0.0


@pytest.mark.parametrize(
    "response",
    ["def add(a, b): return a + b", "class Solution:\n  def add(self, a, b): return a + b"],
)
def test_rows_with_a_function_name_are_calls(box: Sandbox, response: str) -> None:
    gold = {"fn_name": "add", "inputs": [[1, 2], "3\n4"], "outputs": [3, [7]]}
    assert score(box, response, gold) == 1.0
    assert score(box, response.replace("+", "-"), gold) == 0.0


def test_a_program_may_leave_by_exit(box: Sandbox) -> None:
    gold = {"inputs": ["1"], "outputs": ["2"]}
    for leave in ("exit()", "quit()", "exit(0)", "import sys; sys.exit()"):
        assert score(box, f"```python\nprint(int(input()) + 1)\n{leave}\n```", gold) == 1.0
    assert score(box, "print(2)\nexit(1)", gold) == 0.0


def test_a_class_solution_has_the_imports_of_the_place_its_form_is_from(box: Sandbox) -> None:
    gold = {"fn_name": "most", "inputs": [[[2, 3, 3]]], "outputs": [3]}
    code = (
        "class Solution:\n  def most(self, xs: List[int]) -> Optional[int]:\n"
        "    return Counter(xs).most_common(1)[0][0] + int(math.sqrt(0))"
    )
    assert score(box, code, gold) == 1.0


def test_an_array_of_a_called_function_is_compared_as_a_list(box: Sandbox) -> None:
    if box.packages is None:
        pytest.skip("the sandbox's Python is another version, or its user cannot read numpy")
    gold = {"fn_name": "pair", "inputs": [[1]], "outputs": [[1, 2]]}
    assert score(box, "import numpy\ndef pair(x): return numpy.array([x, x + 1])", gold) == 1.0
    empty = "import numpy\ndef pair(x): return numpy.array([])"
    assert score(box, empty, gold) == 0.0
    assert score(box, empty, {**gold, "outputs": [3]}) == 0.0


def test_a_fence_that_never_ends_its_line_is_read_quickly() -> None:
    """Linear: 5 ms. Quadratic: minutes."""
    begun = time.process_time()
    assert find_code("```" + " " * 300_000) is None
    assert time.process_time() - begun < 20.0


def test_a_response_without_code_is_wrong_and_a_judge_may_look_at_it(box: Sandbox) -> None:
    assert isinstance(score(box, "I do not know.", ["assert f(1) == 1"]), Undecided)


@pytest.mark.parametrize(
    ("gold", "problem"),
    [
        (None, "there is no ground_truth"),
        ("", "ground_truth is empty, expected tests"),
        ([], "ground_truth is empty, expected tests"),
        (7, "ground_truth is int, expected tests"),
        ("assert f(", "no Python that compiles"),
        ("x = 1", "neither an assert nor a call"),
        ('{"inputs": ["1"]}', "ground_truth has inputs, expected inputs and outputs"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        (["assert f(1) == 1"], None),
        ('{"inputs": ["1"], "outputs": ["2"]}', None),
        (CHECK, None),
    ],
)
def test_a_gold_without_tests_is_found(gold: Any, problem: str | None) -> None:
    found = reference_problem("code", gold)
    assert (found is None) if problem is None else (found is not None and problem in found)


@pytest.fixture(scope="module")
def humaneval(shared_data: Path) -> list[dict[str, Any]]:
    with gzip.open(shared_data / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        return [CONVERTERS["humaneval"].convert(json.loads(line)) for line in file]


@pytest.fixture(scope="module")
def grade(box: Sandbox) -> Iterator[Any]:
    """grade(rows, responses): scores by two processes, in the way of a run."""
    pool = ScorerPool("rules", workers=2, timeout_s=30.0)

    def call(rows: list[dict[str, Any]], responses: list[str]) -> list[float | None]:
        rollouts = [
            Rollout(
                prompt=Prompt(
                    id=row["extra_info"]["task_id"],
                    messages=(),
                    token_ids=(1,),
                    ground_truth=row["ground_truth"],
                    data_source=CONVERTERS["humaneval"].data_source,
                    extra_info=row["extra_info"],
                ),
                text=response,
                token_ids=(1,),
                logprobs=(0.0,),
                finish_reason="stop",
                policy_version=0,
            )
            for row, response in zip(rows, responses, strict=True)
        ]
        return [reward.value for reward in score_all(pool, rollouts)]

    yield call
    pool.close()


def solution(row: dict[str, Any]) -> str:
    return row["extra_info"]["prefix"] + row["extra_info"]["canonical_solution"]


@pytest.mark.slow
def test_every_canonical_solution_of_humaneval_passes(
    humaneval: list[dict[str, Any]], grade: Any
) -> None:
    halves = zip(humaneval[::2], humaneval[1::2], strict=True)
    responses = [
        text
        for block, body in halves
        for text in (
            f"So:\n```python\n{solution(block)}\n```\n",
            body["extra_info"]["canonical_solution"],
        )
    ]
    assert grade(humaneval, responses) == [1.0] * 164


def test_every_solution_of_humaneval_that_returns_nothing_fails(
    humaneval: list[dict[str, Any]], grade: Any
) -> None:
    responses = [f"```python\n{row['extra_info']['prefix']}    pass\n```" for row in humaneval]
    assert grade(humaneval, responses) == [0.0] * 164


class _Mutation(ast.NodeTransformer):
    """The first comparison turned round, or else the first number off by one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.is_done = False

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if self.kind != "negated" or self.is_done:
            return self.generic_visit(node)
        self.is_done = True
        return ast.UnaryOp(op=ast.Not(), operand=node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if self.kind != "off by one" or self.is_done or type(node.value) is not int:
            return node
        self.is_done = True
        return ast.Constant(value=node.value + 1)

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if self.kind != "constant":
            return self.generic_visit(node)
        self.is_done = True
        return ast.Return(value=ast.Constant(value=1))


def mutated(row: dict[str, Any], kind: str) -> str | None:
    """The canonical solution with one mistake; None where it has no place for that."""
    tree = ast.parse(solution(row))
    mutation = _Mutation(kind)
    for index, node in enumerate(tree.body):
        if getattr(node, "name", None) == row["extra_info"]["entry_point"]:
            tree.body[index] = mutation.visit(node)
    return ast.unparse(ast.fix_missing_locations(tree)) if mutation.is_done else None


def plainly_passes(row: dict[str, Any], text: str) -> bool:
    """The verdict of the tests and the code in one plain process."""
    program = f"{text}\n{row['ground_truth']}"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (10, 10))"  # not of a clock
    command = [sys.executable, "-S", "-c", f"{limit}\n{program}"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("kind", ["negated", "off by one", "constant"])
def test_mistakes_in_humaneval_solutions_are_found(
    humaneval: list[dict[str, Any]], grade: Any, kind: str
) -> None:
    _compare(humaneval[::8], grade, kind)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["negated", "off by one", "constant"])
def test_all_mistakes_in_humaneval_solutions_are_found(
    humaneval: list[dict[str, Any]], grade: Any, kind: str
) -> None:
    _compare(humaneval, grade, kind)


def _compare(rows: list[dict[str, Any]], grade: Any, kind: str) -> None:
    """A mistake is scored 0 unless HumanEval's own tests let it pass."""
    tried = [(row, text) for row in rows if (text := mutated(row, kind)) is not None]
    scores = grade([row for row, _ in tried], [f"```python\n{text}\n```" for _, text in tried])
    assert scores == [float(plainly_passes(row, text)) for row, text in tried]
    assert len(tried) > len(rows) / 2
    assert sum(scores) <= 0.2 * len(tried)
    print(f"{kind}: {len(tried)} tried, {sum(scores):g} pass HumanEval's tests")


PLUS = """\
import numpy as np
def assertion(out, exp, atol):
    exact_match = out == exp
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match, f"out: {out}, exp: {exp}"
inputs = [[[1, 3], 2], [[2.5], 5]]
results = [[0.5, 1.5], [0.5]]
for inp, exp in zip(inputs, results):
    assertion(scaled(*inp), exp, 1e-6)
"""


def test_rows_of_evalplus_compare_with_numpy(box: Sandbox) -> None:
    if box.packages is None:
        pytest.skip("the sandbox's Python is another version, or its user cannot read numpy")
    assert score(box, "def scaled(xs, by): return [x / by for x in xs]", PLUS) == 1.0
    assert score(box, "def scaled(xs, by): return [x / by + 1 for x in xs]", PLUS) == 0.0
    fake = "class Any:\n  __eq__ = __array__ = lambda *x, **y: True\ndef scaled(*x): return Any()"
    assert score(box, fake, PLUS) == 0.0


def test_in_a_run_code_that_never_ends_is_wrong_and_says_so(
    box: Sandbox, pool: Any, rollout: Any
) -> None:
    texts = ["def f(): return 2", "def f(): return 1", "def f():\n  while True: pass"]
    *ending, endless = [rollout(text, ["assert f() == 1"], "mbpp") for text in texts]
    # a sandbox may need longer to start on a busy machine
    for timeout_s in (2.0, 20.0, 100.0):
        (wrong,) = score_all(pool("rules", timeout_s=timeout_s), [endless])
        if wrong.value is not None:
            break
    assert (wrong.value, wrong.reason) == (0.0, f"took longer than {0.8 * timeout_s:g} s")
    rewards = score_all(pool("rules", timeout_s=100.0), ending)
    assert [(reward.value, reward.reason) for reward in rewards] == [
        (0.0, "AssertionError at: assert f() == 1"),
        (1.0, None),
    ]


def test_in_a_run_without_a_sandbox_code_is_unscored_with_the_cause(
    pool: Any, rollout: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    row = rollout("def f(): return 1", ["assert f() == 1"], "mbpp")
    (reward,) = score_all(pool("rules"), [row])
    assert reward.value is None
    assert "bubblewrap (bwrap) is not on PATH" in reward.error
    (reward,) = score_all(pool("rules", allows_unsafe=True), [row])
    assert reward.value == 1.0


def test_a_missing_module_of_the_tests_is_no_fault_of_the_code(box: Sandbox) -> None:
    with pytest.raises(SandboxFailed, match="the tests import no_such_module"):
        score(box, "def f(x): return x", ["import no_such_module", "assert f(1) == 1"])
