"""Engines that this version has, and what is said of those that it has not."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.errors import ConfigError
from rlcli.setup.checks import check_engines, engines


def test_deepspeed_is_asked_for_where_it_is_not_installed(
    checked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = checked("train.engine=deepspeed")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.engine=deepspeed.*not installed") as refused:
        check_engines(resolved)
    assert "pip install 'rlcli[deepspeed]'" in str(refused.value)


def test_deepspeed_does_not_compile(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"model\.compile=true.*train\.engine=deepspeed"):
        check_engines(checked("train.engine=deepspeed", "model.compile=true"))


def test_an_address_alone_means_the_server(checked: Any) -> None:
    resolved = checked("rollout.url=http://h:8000")
    assert resolved.config.rollout.engine == "vllm_server"
    assert "turns rollout.engine to vllm_server" in resolved.notes[0]


@pytest.mark.parametrize("engine", ["native", "vllm", "auto"])
def test_an_address_beside_another_sampler_is_refused(checked: Any, engine: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)rollout\.url.*rollout\.engine={engine}.*Use"):
        checked("rollout.url=http://h:8000", f"rollout.engine={engine}")


@pytest.mark.parametrize("url", ["foo", "http://h:port", "http://a:1,", "http://a:1,b:2"])
def test_what_is_no_address_is_refused_with_where_it_came_from(checked: Any, url: str) -> None:
    for more in ([], ["rollout.engine=vllm_server"]):
        with pytest.raises(ConfigError, match=r"rollout\.url=.* \(from .*is no address"):
            checked(f"rollout.url={url}", *more)


def test_several_addresses_go_with_commas(checked: Any) -> None:
    assert checked("rollout.url=http://a:1, http://b:2/v1").config.rollout.url


def test_a_message_has_three_lines_whatever_the_value_holds(checked: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        checked("rollout.engine=native", flags={}, file='rollout.url: "a\\nb\\nc\\nd"')
    assert len(str(refused.value).splitlines()) == 2


def test_deepspeed_settings_are_not_listed_under_deepspeed(checked: Any) -> None:
    settings = ["train.zero_stage=3", "train.offload_params=true", "ref.offload_params=true"]
    assert checked("train.engine=deepspeed", *settings, algo="ppo").notes == []
    (note,) = checked(*settings, algo="ppo").notes
    assert note == (
        "not used: train.offload_params, train.zero_stage "
        "(the torch engine keeps every model whole, where it computes)."
    )


AHEAD = "rollout.async_steps=1"
STALE = "rollouts are a step older than the policy that learns from them"


@pytest.mark.parametrize(
    ("algo", "settings", "correction", "words"),
    [
        ("grpo", [], "token", f"turns algorithm.correction to token: {STALE}."),
        ("grpo", ["algorithm.correction=sequence"], "sequence", None),
        ("grpo", ["algorithm.correction=off"], "off", f"{STALE}, and nothing corrects for it."),
        ("grpo", ["rollout.top_p=0.9"], "off", f"{STALE}, and nothing corrects for it."),
        ("grpo", ["algorithm.use_rollout_logprobs=true"], "off", None),
        (
            "gpg",
            ["algorithm.use_rollout_logprobs=true"],
            "off",
            f"{STALE}, and nothing corrects for it.",
        ),
        ("opo", ["algorithm.correction=token"], "token", "opo is meant to be exactly on-policy"),
    ],
)
def test_a_rollout_that_is_a_step_old_is_corrected_for_or_spoken_of(
    algo: str, settings: list[str], correction: str, words: str | None, checked: Any
) -> None:
    resolved = check_engines(checked(AHEAD, "model.dtype=float32", *settings, algo=algo))
    assert resolved.config.algorithm.correction == correction
    told = [note for note in resolved.notes if "step old" in note]
    assert len(told) == (words is not None)
    assert all(words in note for note in told if words is not None)
    assert not [note for note in resolved.notes if "finds little to do" in note]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["run.save_every=1"], "run.save_every is 1: nothing is sampled ahead of a checkpoint"),
        (["run.eval_every=1"], "run.eval_every is 1: nothing is sampled ahead of an evaluation"),
        (["train.max_steps=1"], "train.max_steps is 1: no step follows"),
    ],
)
def test_where_no_step_can_be_ahead_the_setting_is_listed(
    settings: list[str], reason: str, checked: Any
) -> None:
    resolved = checked(AHEAD, *settings, algo="grpo")
    assert resolved.config.rollout.async_steps == 0
    assert resolved.config.algorithm.correction == "auto"
    assert resolved.notes[0] == f"not used: rollout.async_steps ({reason})."
    assert not [note for note in resolved.notes[1:] if "async_steps" in note]


def test_evaluations_of_nothing_stop_nobody_from_sampling_ahead(checked: Any) -> None:
    resolved = checked(AHEAD, "run.eval_every=1", "data.val=[]", algo="grpo")
    assert resolved.config.rollout.async_steps == 1


def test_gspo_with_the_samplers_log_probs_has_a_ratio_one_step_ahead(checked: Any) -> None:
    equal = [["one update"], []]
    for given, expected in zip([[], [AHEAD]], equal, strict=True):
        settings = ["algorithm.use_rollout_logprobs=true", "train.mini_batch_prompts=256", *given]
        notes = checked(*settings, algo="gspo").notes
        assert [note[:10] for note in notes if "gspo equals grpo" in note] == expected


@pytest.mark.parametrize("part", ["param_offload", "optimizer_offload"])
def test_an_actor_that_is_offloaded_on_several_processes_takes_fsdp(
    checked: Any, part: str
) -> None:
    actor = f"actor_rollout_ref.actor.fsdp_config.{part}"
    several = checked(f"{actor}=True", "train.n_gpus=2")
    assert several.config.train.engine == "fsdp"
    assert not any(note.startswith("not used: train.offload") for note in several.notes)
    for words in (
        [f"{actor}=False", "train.n_gpus=2"],
        [f"{actor}=True", "train.n_gpus=1"],
        ["actor_rollout_ref.ref.fsdp_config.param_offload=True", "train.n_gpus=2"],
    ):
        assert checked(*words).config.train.engine == "auto", words
    asked = checked(f"{actor}=True", "train.n_gpus=2", "train.engine=torch")
    assert asked.config.train.engine == "torch"
    assert any("not used: train.offload" in note for note in asked.notes)


def test_fsdp_does_not_compile(checked: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.compile=true.*train\.engine=fsdp"):
        check_engines(checked("train.engine=fsdp", "model.compile=true"))
