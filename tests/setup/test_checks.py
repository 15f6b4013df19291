"""What a run needs, what is adjusted, what is not used: all said before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcli.config.resolved import Resolved, with_values
from rlcli.config.resolver import resolve
from rlcli.config.schema import Config
from rlcli.errors import ConfigError
from rlcli.setup.checks import batch_arithmetic, batching, check


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def call(*overrides: str, algo: str | None = None, **arguments: Any) -> Resolved:
        given: dict[str, Any] = {"flags": {}, "files": [], "env": {}, "cwd": tmp_path}
        return check(resolve(overrides=overrides, algo=algo, **given | arguments))

    return call


def test_a_group_estimator_needs_a_group(run: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        run(algo="grpo", env={"ROLLOUT_N": "1"})
    assert str(caught.value) == (
        "grpo needs rollout.n >= 2, got 1 (from env ROLLOUT_N). "
        "Raise it, or use --algo reinforce_plus_plus."
    )


@pytest.mark.parametrize(
    "name",
    ["grpo", "grpo_passk", "rloo", "reinforce_plus_plus_baseline", "opo", "gpg", "gdpo", "otb"],
)
def test_every_group_estimator_refuses_a_single_response(run: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} needs rollout.n >= 2, got 1"):
        run(f"algorithm.advantage={name}", "rollout.n=1")


@pytest.mark.parametrize("name", ["gae", "reinforce_plus_plus", "remax"])
def test_other_estimators_take_a_single_response(run: Any, name: str) -> None:
    assert run(f"algorithm.advantage={name}", "rollout.n=1").config.rollout.n == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.advantage=grpoo"], ["advantage=grpoo", "Nearest: grpo"]),
        (["algorithm.loss=clipp"], ["loss=clipp", "Nearest: clip"]),
        (["algorithm.loss=dro"], ["dro_beta > 0"]),
        (["algorithm.dynamic_sampling=true"], ["needs rollout.n >= 2", "default"]),
        (["algorithm.advantage=gdpo", "rollout.n=4"], ["reward.weights"]),
        (
            ["algorithm.advantage=gae", "algorithm.loss=gmpo"],
            ["override algorithm.loss=gmpo", "one per token", "algorithm.loss=clip"],
        ),
        (
            [
                "algorithm.advantage=gdpo",
                "rollout.n=4",
                "reward.weights={a: 1.0}",
                "algorithm.kl_in_reward=true",
            ],
            ["algorithm.kl_in_reward", "parts alone", "kl_loss"],
        ),
        (["algorithm.adv_estimator=rloo", "algorithm.scale_by_std=true"], ["rloo has no standard"]),
        (["algorithm.loss_scale_factor=512"], ["aggregation=token_mean", "Add algorithm.aggre"]),
        (
            [
                "algorithm.adv_estimator=grpo",
                "algorithm.loss=gmpo",
                "algorithm.aggregation=token_mean",
            ],
            ["seq_mean_token_mean"],
        ),
        (["algorithm.correction=token", "rollout.top_p=0.9"], ["top_p=0.9", "correction=off"]),
        (["algorithm.correction=sequence", "rollout.top_k=50"], ["top_k=50"]),
        (
            ["algorithm.use_rollout_logprobs=true", "algorithm.correction=token"],
            ["use_rollout_logprobs=true", "themselves"],
        ),
        (
            ["algorithm.use_rollout_logprobs=true", "algorithm.rejection=seq_k1"],
            ["rejection=seq_k1"],
        ),
        (["algorithm.correction_floor=3"], ["correction_floor=3.0", "correction_cap=2.0"]),
        (["train.dynamic_batch=false"], ["micro_batch_size is not set"]),
        (["train.micro_batch_size=96"], ["mini-batch of 256", "Use 64"]),
    ],
)
def test_contradictions_are_refused_with_the_cure(
    run: Any, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*overrides)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 3


def test_a_users_own_functions_are_left_to_the_import(run: Any) -> None:
    resolved = run(
        "algorithm.advantage=my_pkg.mine:advantage", "algorithm.gamma=0.9", "critic.lr=1e-4"
    )
    assert resolved.notes == []


def test_an_aggregation_nobody_asked_for_follows_the_loss(run: Any) -> None:
    resolved = run("algorithm.loss=gmpo", algo="grpo")
    assert resolved.config.algorithm.aggregation == "seq_mean_token_mean"
    assert resolved.sources["algorithm.aggregation"] == "the gmpo loss"
    assert "one number per sequence" in resolved.notes[0]


@pytest.mark.parametrize(
    ("algo", "overrides", "note"),
    [
        ("ppo", ["algorithm.tau_pos=2"], "algorithm.tau_pos (the clip loss has no gate)."),
        ("gpg", ["algorithm.clip_ratio=0.3"], "algorithm.clip_ratio (the gpg loss does not clip)."),
        (
            "gspo",
            ["algorithm.clip_ratio_c=4"],
            "algorithm.clip_ratio_c (the gspo loss has no dual clip).",
        ),
        ("grpo", ["algorithm.gamma=0.9"], "algorithm.gamma (grpo does not discount)."),
        (
            "grpo",
            ["critic.lr=1e-4", "critic.epochs=2"],
            "critic.epochs, critic.lr (grpo has no critic).",
        ),
        ("opo", ["kl_loss_type=mse"], "algorithm.kl_loss_type (algorithm.kl_loss is off)."),
        (
            "ppo",
            ["algorithm.kl_target=0.2"],
            "algorithm.kl_target (algorithm.kl_controller is fixed).",
        ),
        (
            "grpo",
            ["algorithm.max_resample_rounds=3"],
            "algorithm.max_resample_rounds (algorithm.dynamic_sampling is off).",
        ),
        ("ppo", ["lora.alpha=32"], "lora.alpha (lora.rank is 0: full weights are trained)."),
    ],
)
def test_what_nothing_reads_is_listed_once_with_the_reason(
    run: Any, algo: str, overrides: list[str], note: str
) -> None:
    notes = run(*overrides, algo=algo).notes
    assert notes.count(f"not used: {note}") == 1


def test_defaults_and_presets_are_never_listed(run: Any) -> None:
    for algo in ("grpo", "gpg", "cispo", "opo"):
        assert not [note for note in run(algo=algo).notes if "not used" in note]


def test_kl_that_was_given_a_meaning_is_not_listed_again(run: Any) -> None:
    notes = run(algo="grpo", flags={"kl_coef": 0.01}).notes
    assert not [note for note in notes if "not used" in note]


def test_rows_turn_token_micro_batches_off_and_say_so(run: Any) -> None:
    resolved = run("ppo_micro_batch_size_per_gpu=32", "ppo_max_token_len_per_gpu=20000")
    assert not resolved.config.train.dynamic_batch
    assert "turns train.dynamic_batch off" in resolved.notes[0]
    assert resolved.notes[1].startswith("not used: train.tokens_per_micro_batch")


def test_rows_beside_an_explicit_dynamic_batch_are_not_used(run: Any) -> None:
    resolved = run("train.micro_batch_size=7", "use_dynamic_bsz=True")
    assert resolved.config.train.dynamic_batch
    assert resolved.notes[0].startswith("not used: train.micro_batch_size")


def test_rows_over_a_mini_batch_shrink(run: Any) -> None:
    resolved = run("train.micro_batch_size=2048", algo="grpo")
    assert resolved.config.train.micro_batch_size == 1024
    assert resolved.sources["train.micro_batch_size"] == (
        "override train.micro_batch_size=2048, shrunk to the mini-batch"
    )


def test_rows_need_not_divide_a_mini_batch_that_shrank(run: Any) -> None:
    resolved = run("train.micro_batch_size=32", flags={"batch_size": 48})
    assert resolved.config.train.micro_batch_size == 32


def test_mini_batches_over_a_step_shrink(run: Any) -> None:
    resolved = run("critic.mini_batch_prompts=512", flags={"batch_size": 128})
    config = resolved.config
    assert (config.train.mini_batch_prompts, config.critic.mini_batch_prompts) == (128, 128)
    assert resolved.notes[0].startswith("train.mini_batch_prompts is 128: 256 was more")


def test_combinations_that_mean_something_else_are_told(run: Any) -> None:
    assert "exactly on-policy" in run("train.ppo_epochs=2", algo="opo").notes[0]
    assert "gspo equals grpo" in run("train.mini_batch_prompts=256", algo="gspo").notes[0]
    assert "nothing corrects" in run("rollout.top_p=0.9").notes[0]
    assert (
        "2,048 tokens"
        in run("data.max_response_length=1536", "ppo_max_token_len_per_gpu=2000").notes[0]
    )
    assert run(algo="gspo").notes == []


def test_arithmetic_of_a_step_is_one_line() -> None:
    config = with_values(
        Config(),
        {
            "train.prompts_per_step": 128,
            "train.mini_batch_prompts": 64,
            "rollout.n": 4,
            "train.tokens_per_micro_batch": 24_000,
        },
    )
    same, lines = batch_arithmetic(config, 1280)
    assert same == config
    assert lines == [
        "128 prompts x n=4 = 512 rollouts/step -> 2 mini-batches x 256 "
        "-> micro-batches of <= 24,000 tokens",
        "1,280 prompts / 128 = 10 steps/epoch x 10 epochs = 100 steps",
    ]


def test_batches_shrink_to_the_data_and_say_so() -> None:
    config, lines = batch_arithmetic(Config(), 10)
    assert (config.train.prompts_per_step, config.train.mini_batch_prompts) == (10, 10)
    assert lines[0] == "train.prompts_per_step is 10: 256 was more than the data has."
    assert lines[1] == "train.mini_batch_prompts is 10: 256 was more than a step has."
    assert lines[2].startswith("10 prompts x n=1 = 10 rollouts/step -> 1 mini-batch x 10 ")


def test_short_batches_and_an_early_stop_are_part_of_the_arithmetic() -> None:
    values = {"train.prompts_per_step": 100, "train.mini_batch_prompts": 64, "train.max_steps": 7}
    _, lines = batch_arithmetic(with_values(Config(), values), 250)
    assert "2 mini-batches x <= 64" in lines[0]
    assert lines[1] == (
        "250 prompts / 100 = 3 steps/epoch (the last of an epoch with 50 prompts) x 10 epochs "
        "= 30 steps, stopped after 7 (train.max_steps)"
    )


@given(
    rows=st.integers(1, 5000),
    step=st.integers(1, 600),
    mini=st.integers(1, 600),
    n=st.integers(1, 16),
    max_steps=st.none() | st.integers(1, 50),
)
def test_batches_always_fit_and_cover_the_data(
    rows: int, step: int, mini: int, n: int, max_steps: int | None
) -> None:
    values = {
        "train.prompts_per_step": step,
        "train.mini_batch_prompts": mini,
        "rollout.n": n,
        "train.max_steps": max_steps,
    }
    config, _ = batch_arithmetic(with_values(Config(), values), rows)
    facts = batching(config, rows)
    assert facts.rollouts_per_mini_batch <= facts.rollouts_per_step <= rows * n
    assert facts.mini_batches * facts.rollouts_per_mini_batch >= facts.rollouts_per_step
    assert facts.steps_per_epoch * facts.prompts_per_step >= rows
    assert 1 <= facts.num_steps <= facts.steps_per_epoch * 10
