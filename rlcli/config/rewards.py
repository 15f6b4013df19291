"""Who gives the scores, and how: the settings under `reward`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlcli.config.base import (
    Count,
    Finite,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
)


class JudgeConfig(Section):
    """A language model that scores (LLM-as-a-judge)."""

    enabled: bool = False
    """Score with a judge."""
    provider: Literal["dashscope", "openai", "gemini", "claude"] = "dashscope"
    """Whose API it is; its key comes from the environment."""
    model: str | None = None
    """The judge; none: qwen-plus under dashscope, the others must be named."""
    prompt: str | None = None
    """math, code, dialogue, safety, or a template file; none: a general one."""
    system_prompt: str | None = None
    """System prompt in place of the template's."""
    scoring_prompt: str | None = None
    """Scoring prompt in place of the template's: {prompt}, {response}, {ground_truth}."""
    scale: list[int] = []
    """[lowest, highest] score the judge gives; []: the template's, 1 to 10."""
    base_url: str | None = None
    """A compatible server instead of the provider's own."""
    concurrency: Count = 8
    """Calls in flight at most."""
    rpm: Positive | None = None
    """Calls per minute at most."""
    tpm: Positive | None = None
    """Tokens per minute at most."""
    max_cost: PositiveFloat | None = None
    """US dollars the judge may cost before the run pauses."""
    price: list[NonNegativeFloat] = []
    """[input, output] US dollars per million tokens; []: the price table's."""
    timeout_s: PositiveFloat = 60.0
    """Seconds one call may take in all."""
    votes: Annotated[int, Field(ge=1, le=99)] = 1
    """Verdicts per response; their median is the score."""
    panel: list[str] = []
    """More judges, MODEL or provider:MODEL; each prompt is scored by one of all."""
    rule_first: bool = False
    """Ask only about responses that reward.fn cannot decide."""
    cache: str = "run"
    """Where verdicts are kept: run (in the run directory), off, or a file for several runs."""
    canary_every: NonNegative = 20
    """Steps between checks that known bad answers get low scores; 0: none."""


class RewardConfig(Section):
    """Scores."""

    fn: str = "rules"
    """rules (chosen by data_source), the name of one rule, or file.py:function."""
    model: str | None = None
    """Reward model: directory, hub name, or http://host/score."""
    judge: JudgeConfig = JudgeConfig()
    """LLM-as-a-judge."""
    composite: bool = False
    """Mix rm_score (judge or reward model) and rule_score (fn) by weights."""
    weights: dict[str, Finite] = {}
    """Weights of the parts of a reward function (gdpo) or of a composite."""
    normalize: Literal["auto", "off", "running", "fixed"] = "auto"
    """Scale of a reward model's score; auto: running in a composite, else off."""
    normalize_mean: Finite | None = None
    """Mean that fixed takes off, as `rlcli reward test` prints it."""
    normalize_std: PositiveFloat | None = None
    """Standard deviation that fixed divides by, as `rlcli reward test` prints it."""
    keep_special_tokens: bool = False
    """Give rewards the special tokens of a response, such as <think>; the end token stays out."""
    unsafe_code_execution: bool = False
    """Run code that the model wrote where no sandbox can be made."""
    timeout_s: PositiveFloat = 10.0
    """Seconds one scoring may take before its process is killed."""
    workers: Count = 1
    """Scoring processes on a machine; one for each rank at least."""
