"""Unbiased pass@k, its interval, and what is asked of an evaluation before a model loads."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcli.errors import (
    ConfigError,
    DataError,
    DeviceNotFoundError,
    ModelError,
    RlcliError,
    RunDirError,
)
from rlcli.tools.evaluation.estimates import confidence_interval, pass_at_k
from rlcli.tools.evaluation.measuring import Sampled, summarize
from rlcli.tools.evaluation.planning import Request, plan_evaluation
from rlcli.types import Prompt, Reward, Rollout

QUICK = {"data.val": ["builtin:sums_val"], "train.device": "cpu"}


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 2, 0.5),  # 3 of the 6 pairs hold the one that passes
        (5, 2, 2, 0.7),  # 1 - 3/10
        (10, 3, 1, 0.3),
        (4, 4, 3, 1.0),
        (4, 0, 4, 0.0),
        (4, 1, 4, 1.0),
        (4, 2, 3, 1.0),  # only two fail, so three cannot all fail
    ],
)
def test_pass_at_k_by_hand(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == expected


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(data: st.DataObject) -> None:
    passed = data.draw(st.lists(st.booleans(), min_size=1, max_size=8))
    k = data.draw(st.integers(1, len(passed)))
    subsets = list(itertools.combinations(passed, k))
    share = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(len(passed), sum(passed), k) == pytest.approx(share, abs=1e-15)


def test_pass_at_k_is_unbiased() -> None:
    """Over all outcomes of n draws that pass with chance p, its mean is 1 - (1 - p)^k."""
    n, k, p = 7, 3, 0.2
    mean = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
    )
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_loses_nothing_to_large_numbers() -> None:
    assert pass_at_k(10_000, 1, 5_000) == 0.5
    assert pass_at_k(10_000, 1, 1) == 1e-4


@given(st.lists(st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0]), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_the_interval_holds_the_mean_and_stays_within_the_scores(scores: list[float]) -> None:
    low, high = confidence_interval(scores)
    assert min(scores) - 1e-12 <= low <= math.fsum(scores) / len(scores) <= high
    assert high <= max(scores) + 1e-12
    assert confidence_interval(scores) == (low, high)


def test_the_interval_is_the_binomial_one_for_many_prompts() -> None:
    low, high = confidence_interval([1.0] * 300 + [0.0] * 700)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - half, abs=2e-3)
    assert high == pytest.approx(0.3 + half, abs=2e-3)


def plan(**request: Any) -> Any:
    more = {"target": "builtin:quickstart", "settings": QUICK} | request
    return plan_evaluation(Request(**more), Path.cwd(), {})


def test_unscored_responses_are_left_out_of_n_and_never_count_as_failed() -> None:
    planned = plan(k=(1, 2), limit=3)
    values = [1.0, None, 0.49, 0.5, None, None]
    prompts = [prompt for prompt in planned.prompts for _ in range(2)]
    sampled = Sampled(
        rollouts=[response(prompt, length=i) for i, prompt in enumerate(prompts)],
        rewards=[Reward(value=value) for value in values],
        sample_s=0.5,
        wall_s=1.0,
    )
    report = summarize(planned, sampled)
    assert report["counted"] == {"pass@1": 2, "pass@2": 1}
    assert report["pass@1"] == 0.75  # 1 of 1 and 1 of 2; the third prompt has no score
    assert report["pass@2"] == 1.0
    assert report["unscored"] == 3
    assert report["reward_mean"] == pytest.approx(1.99 / 3)
    assert report["response_length_mean"] == 2.5
    assert report["truncated_share"] == 0.5
    assert report["tokens_per_s"] == 30.0


def response(prompt: Prompt, *, length: int) -> Rollout:
    return Rollout(
        prompt=prompt,
        text="",
        token_ids=(7,) * length,
        logprobs=(),
        finish_reason="length" if length % 2 else "stop",
        policy_version=0,
    )


@pytest.mark.parametrize(
    ("k", "n", "given", "expected"),
    [
        ((1,), None, None, (1, 0.0)),
        ((1,), None, 0.7, (1, 0.7)),
        ((1,), 4, None, (4, 1.0)),
        ((1, 8), None, None, (8, 1.0)),
        ((8,), 16, 0.6, (16, 0.6)),
    ],
)
def test_one_response_is_greedy_and_several_are_sampled(
    k: tuple[int, ...], n: int | None, given: float | None, expected: tuple[int, float]
) -> None:
    planned = plan(k=k, n=n, temperature=given, limit=2)
    assert (planned.n, planned.temperature) == expected


def test_a_models_own_positions_limit_prompts_and_responses() -> None:
    data = plan(limit=2).config.data
    assert (data.max_prompt_tokens, data.max_response_tokens) == (256, 256)  # of 512
    data = plan(limit=2, settings={**QUICK, "data.max_response_tokens": 6}).config.data
    assert (data.max_prompt_tokens, data.max_response_tokens) == (506, 6)


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        ({"k": (8,), "n": 4}, ConfigError, "--k 8 needs as many responses per prompt, got --n 4"),
        ({"k": (8,), "temperature": 0.0}, ConfigError, "samples the same response 8 times"),
        ({"temperature": math.nan}, ConfigError, "expected a number"),
        ({"settings": {}}, ConfigError, "Add --data FILE"),
        ({"step": 3}, ConfigError, "--step 3 needs a run"),
        ({"target": "quickstrat"}, RunDirError, "neither a run nor a model"),
        ({"target": "."}, RunDirError, r"A model is a directory with config\.json"),
        ({"target": "./nowhere"}, ModelError, r"not a directory\. Give a directory with config"),
        ({"target": "builtin:x"}, ModelError, "no built-in model x"),
        (
            {"settings": {**QUICK, "data.max_response_tokens": 512}},
            ConfigError,
            r"data\.max_response_tokens=512 \(from flag --max_response_tokens\)",
        ),
        (
            {"settings": {**QUICK, "data.max_prompt_tokens": 2}},
            DataError,
            r"val\.jsonl:1 has 5 tokens.*\nRaise --max_prompt_tokens",
        ),
        ({"settings": {**QUICK, "train.device": "mps"}}, DeviceNotFoundError, "--device mps"),
        ({"settings": {**QUICK, "reward.fn": "sum"}}, RlcliError, "sum"),
        ({"settings": {**QUICK, "data.val": ["builtin:sums_vl"]}}, RlcliError, "sums_val"),
    ],
)
def test_wrong_requests_are_refused_with_the_cure(
    request_: dict[str, Any],
    kind: type[RlcliError],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=words) as refused:
        plan(**request_)
    assert refused.value.exit_code == 2
    assert len(str(refused.value).splitlines()) <= 3


def test_an_adapter_without_its_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="base_model_name_or_path"):
        plan(target=str(tmp_path))
