"""Which data a run is evaluated on when the user names only the training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlcli.config.resolver import resolve
from rlcli.config.schema import HELD_OUT, Config


def settings(tmp_path: Path, *overrides: str, **more: Any) -> Config:
    given: dict[str, Any] = {"flags": {}, "files": [], "env": {}, "cwd": tmp_path}
    return resolve(overrides=overrides, **{**given, **more}).config


def test_data_of_the_users_own_is_evaluated_on_a_part_of_it(tmp_path: Path) -> None:
    assert settings(tmp_path, "data.train=mine.jsonl").data.val == [HELD_OUT]
    assert settings(tmp_path, flags={"data": ["a.jsonl", "b.jsonl"]}).data.val == [HELD_OUT]
    assert settings(tmp_path, "data.train_files=mine.parquet").data.val == [HELD_OUT]
    assert settings(tmp_path, "data.train=builtin:sums").data.val == [HELD_OUT]


def test_a_config_file_counts_as_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data:\n  train: mine.jsonl\n")
    assert settings(tmp_path, files=[Path("mine.yaml")]).data.val == [HELD_OUT]


def test_named_validation_data_stays(tmp_path: Path) -> None:
    named = settings(tmp_path, "data.train=mine.jsonl", "data.val_files=v.parquet")
    assert named.data.val == ["v.parquet"]
    assert settings(tmp_path, "data.train=mine.jsonl", "data.val=[]").data.val == []


def test_without_data_of_the_users_own_nothing_changes(tmp_path: Path) -> None:
    assert settings(tmp_path).data.val == ["builtin:math_reasoning_val"]
    assert settings(tmp_path, preset="quickstart").data.val == ["builtin:sums_val"]
    same = settings(tmp_path, "data.train=builtin:sums", preset="quickstart")
    assert same.data.val == ["builtin:sums_val"]


def test_a_recipes_validation_data_gives_way_with_a_note(tmp_path: Path) -> None:
    given: dict[str, Any] = {"overrides": [], "files": [], "env": {}, "cwd": tmp_path}
    resolved = resolve(flags={"data": ["mine.jsonl"]}, preset="gsm8k-0.5b", **given)
    assert resolved.config.data.val == [HELD_OUT]
    assert any(
        "data/gsm8k/test.parquet" in note and "--val_data" in note for note in resolved.notes
    )
    assert resolved.sources["data.val"] == "follows data.train"


def test_a_runs_own_settings_are_kept_when_it_is_resumed(tmp_path: Path) -> None:
    """Also those of a run that was evaluated on built-in questions before."""
    for val in ([HELD_OUT], ["builtin:math_reasoning_val"]):
        run = Config()
        run = run.model_copy(
            update={"data": run.data.model_copy(update={"train": ["mine.jsonl"], "val": val})}
        )
        (tmp_path / "config.json").write_text(run.model_dump_json())
        assert settings(tmp_path, files=[Path("config.json")]).data.val == val


def test_a_dump_of_all_settings_names_no_built_in_data_for_other_data(tmp_path: Path) -> None:
    run = Config()
    for name, train in (("all.json", "mine.jsonl"), ("config.json", "builtin:math_reasoning")):
        data = run.data.model_copy(update={"train": [train]})
        (tmp_path / name).write_text(run.model_copy(update={"data": data}).model_dump_json())
    assert settings(tmp_path, files=[Path("all.json")]).data.val == [HELD_OUT]
    other = settings(tmp_path, "data.train=other.jsonl", files=[Path("config.json")])
    assert other.data.val == [HELD_OUT]
    same = settings(tmp_path, files=[Path("config.json")])
    assert same.data.val == ["builtin:math_reasoning_val"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("rollout.stop=</answer>", ["</answer>"]),
        ("rollout.stop=User:", ["User:"]),
        ('rollout.stop=["</answer>", "User:"]', ["</answer>", "User:"]),
        ("rollout.stop=['###']", ["###"]),
        ("rollout.stop=\\n\\n", ["\n\n"]),
        ("+rollout.stop=42", ["42"]),
    ],
)
def test_stop_texts_are_taken_as_they_are_typed(
    tmp_path: Path, typed: str, expected: list[str]
) -> None:
    assert settings(tmp_path, typed).rollout.stop == expected


def test_a_prompt_template_is_text_with_new_lines(tmp_path: Path) -> None:
    data = settings(tmp_path, "data.prompt_template={question}\\n\\n{context}").data
    assert data.prompt_template == "{question}\n\n{context}"
    data = settings(tmp_path, "data.system_prompt=Think: $5 or ${x}?").data
    assert data.system_prompt == "Think: $5 or ${x}?"


def test_template_variables_are_entries_or_a_mapping(tmp_path: Path) -> None:
    for typed in (
        "data.chat_template_kwargs.enable_thinking=false",
        "data.chat_template_kwargs={enable_thinking: false}",
        "+data.apply_chat_template_kwargs.enable_thinking=False",
    ):
        assert settings(tmp_path, typed).data.chat_template_kwargs == {"enable_thinking": False}


def test_verls_names_of_the_reward_function_are_taken(tmp_path: Path) -> None:
    path = "custom_reward_function.path=mine.py"
    assert settings(tmp_path, path).reward.fn == "mine.py"
    named = settings(tmp_path, path, "custom_reward_function.name=score_it")
    assert named.reward.fn == "mine.py:score_it"
    assert settings(tmp_path, path, "custom_reward_function.name=null").reward.fn == "mine.py"


@pytest.mark.parametrize("manager", ["naive", "dapo", "prime", "batch"])
def test_verls_reward_managers_are_accepted_with_a_note(tmp_path: Path, manager: str) -> None:
    given: dict[str, Any] = {"flags": {}, "files": [], "env": {}, "cwd": tmp_path}
    resolved = resolve(overrides=[f"reward_model.reward_manager={manager}"], **given)
    assert any("reward_model.reward_manager" in note for note in resolved.notes)
