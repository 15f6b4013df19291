"""Option names of other trainers lead to ours; a name unlike any of ours leads nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcli.cli.main import main
from rlcli.config.names import FLAG_KEYS, MAPPING_KEYS, OWN_KEYS
from rlcli.config.peer_names import as_option, peer_names, settings_for, suggestion

CASES = Path(__file__).parents[3] / "shared" / "cases" / "hints" / "options.jsonl"


def error_of(typed: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--preset", "quickstart", *typed, "--dry_run"])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_every_target_is_a_setting_and_no_name_is_listed_twice_for_it() -> None:
    for key, names in peer_names().items():
        assert key in OWN_KEYS or key.startswith(tuple(f"{one}." for one in MAPPING_KEYS)), key
        assert len(names) == len(set(names)), key


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--learning_rate", "--lr"),
        ("--num_generations", "rollout.n=VALUE"),
        ("--report_to", "--logger"),
        ("--lora_r", "lora.rank=VALUE"),
        ("--temperature", "rollout.temperature=VALUE"),
        ("--actor.eps_clip", "algorithm.clip_ratio=VALUE"),
        ("--critic.adam.lr", "critic.lr=VALUE"),
        ("--warmup_ratio", "train.lr_warmup_steps=VALUE"),
        ("--cutoff_len", "data.max_prompt_tokens=VALUE"),
        ("--finetuning_type", "lora.rank=VALUE"),
        ("--data.train_files", "data.train_files=VALUE"),
    ],
)
def test_an_option_of_another_trainer_leads_to_ours(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of([typed, "1"], capsys)
    assert typed in error  # as the user wrote it
    assert f" {meant}" in error


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lora.r=8", "lora.rank"),
        ("train.learning_rate=1", "train.lr"),
        ("training_args.num_train_epochs=3", "train.epochs"),
        ("rollout.n_samples_per_prompt=4", "rollout.n"),
        ("critic.freezing_steps=2", "critic.warmup_steps"),
    ],
)
def test_a_key_of_another_trainer_leads_to_ours(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"Use {meant}." in error_of([typed], capsys)


@pytest.mark.parametrize(
    "name",
    ["lora.q", "local_rank", "foo", "x", "neftune_noise_alpha", "bogus.setting", "model_type"],
)
def test_a_name_unlike_any_of_ours_leads_nowhere(name: str) -> None:
    assert suggestion(name) == ""


def test_the_policys_settings_are_not_offered_for_another_model() -> None:
    assert settings_for("actor.weight_decay") == ("train.weight_decay",)
    assert settings_for("reward_model.weight_decay") == ()


def test_a_setting_with_an_option_is_written_as_that() -> None:
    assert as_option("train.lr") == "--lr"
    assert as_option("rollout.n") == "rollout.n=VALUE"
    assert FLAG_KEYS["lr"] == "train.lr"


@pytest.mark.slow
def test_the_collected_names_of_other_trainers_lead_to_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not CASES.is_file():
        pytest.skip("../shared/cases is not here")
    for line in CASES.read_text().splitlines():
        case = json.loads(line)
        words = [case["typed"], *([case["value"]] if case["value"] else [])]
        with pytest.raises(SystemExit) as ended:
            main(["train", "--preset", "quickstart", *words, "--dry_run"])
        text = capsys.readouterr().err.replace("-", "_")
        named = any(meant.replace("-", "_") in text for meant in case["means"])
        assert ended.value.code == 0 or named, (words, text)
