"""Config files, references and files found in the working directory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlcli.errors import ConfigError


def test_a_hydra_file_of_the_guides_is_read_by_its_name(run: Any, tmp_path: Path) -> None:
    (tmp_path / "grpo_config.yaml").write_text(
        "defaults:\n  - ppo_trainer\n  - _self_\n\nalgorithm:\n  adv_estimator: grpo\n\n"
        "actor_rollout_ref:\n  rollout:\n    n: 4\n  actor:\n    use_kl_loss: true\n"
    )
    config = run(files=[Path("grpo_config")]).config
    assert (config.algorithm.name, config.rollout.n, config.algorithm.kl_loss) == ("grpo", 4, True)


def test_references_take_other_settings(run: Any) -> None:
    file = (
        "defaults: [ppo_trainer, _self_]\nalgorithm:\n  adv_estimator: gae\n  gamma: 0.99\n"
        "critic:\n  model:\n    path: ${actor_rollout_ref.model.path}\n"
    )
    config = run("run.name=x-${rollout.n}", file=file, env={"MODEL_PATH": "my/model"}).config
    assert (config.critic.path, config.run.name) == ("my/model", "x-1")
    assert config.algorithm.gamma == 0.99


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["critic.path=${model.pth}"], "no setting 'model.pth'. Nearest: model.path"),
        (["critic.path=${model.path}", "model.path=${critic.path}"], "circle"),
    ],
)
def test_references_that_lead_nowhere_are_refused(
    run: Any, overrides: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        run(*overrides)


def test_defaults_lists_load_the_file_beside(run: Any, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("rollout.n: 2\ntrain.lr: 1e-4\n")
    config = run(file="defaults: [base, _self_]\nrollout.n: 3\n").config
    assert (config.rollout.n, config.train.lr) == (3, 1e-4)
    assert run(file="defaults: [_self_, base]\nrollout.n: 3\n").config.rollout.n == 2
    with pytest.raises(ConfigError, match="not a file beside"):
        run(file="defaults: [nowhere]\n")
    with pytest.raises(ConfigError, match="back to itself"):
        run(file="defaults: [x]\n")


def test_a_missing_file_names_the_nearest(run: Any, tmp_path: Path) -> None:
    (tmp_path / "grpo.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"(?s)gropo\.yaml does not exist.*grpo\.yaml"):
        run(files=[Path("gropo.yaml")])


def test_a_problem_in_a_file_names_the_file(run: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting train\.lrr \(from file x\.yaml\)"):
        run(file="train:\n  lrr: 1\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: train\.lr is there twice"):
        run(file="train.lr: 1\ntrain:\n  lr: 2\n")


def test_two_names_of_one_setting_in_one_file_are_refused(run: Any, tmp_path: Path) -> None:
    both = "train.lr: 1e-5\nactor_rollout_ref: {actor: {optim: {lr: 2e-5}}}\n"
    with pytest.raises(
        ConfigError,
        match=r"x\.yaml: train\.lr and actor_rollout_ref\.actor\.optim\.lr are the same",
    ):
        run(file=both)
    assert run(file=both.replace("2e-5", "1e-5")).config.train.lr == 1e-5
    (tmp_path / "base.yaml").write_text("optim.lr: 1e-4\n")
    assert run(file="defaults: [base, _self_]\ntrain.lr: 1e-3\n").config.train.lr == 1e-3
    assert run("train.lr=1", "optim.lr=2").config.train.lr == 2


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "no value"),
        ("folder", "folder is a folder. Give a YAML file."),
        ("a_run", "Use a_run/config.json"),
        ("/dev/null", "/dev/null is a device"),
    ],
)
def test_what_is_no_file_is_said_to_be_none(
    run: Any, tmp_path: Path, name: str, problem: str
) -> None:
    for folder in ("folder", "a_run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a_run" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=re.escape(problem)):
        run(files=[Path(name)])


def test_a_section_is_not_a_setting(run: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"x\.yaml\): algorithm is a section.*such as algorithm\."
    ):
        run(file="algorithm: 3\n")
    with pytest.raises(ConfigError, match="trainer is a section"):
        run(file="trainer: [1]\n")
    assert run(file="critic:\nrun.seed: 3\n").config.run.seed == 3


def test_a_character_that_yaml_does_not_allow_is_one_clean_line(run: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        run(file="a: \0\n")
    text = str(caught.value)
    assert text.endswith(
        "x.yaml: cannot read this YAML: character 4 (U+0000) is not allowed in YAML."
    )


def test_a_runs_own_config_reproduces_it_without_complaints(run: Any, tmp_path: Path) -> None:
    first = run("train.lr=1e-5", "clip_ratio=0.3", algo="rloo")
    (tmp_path / "config.json").write_text(json.dumps(first.config.model_dump()))
    again = run(files=[Path("config.json")])
    assert again.config == first.config
    assert "algorithm.scale_by_std" not in again.explicit
    assert "train.lr" in again.explicit


def test_the_guides_reward_functions_are_found(run: Any, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "reward_functions.py").write_text("def compute_score(): ...\n")
    resolved = run()
    assert resolved.config.reward.fn == "common/reward_functions.py:compute_score"
    assert str((tmp_path / "common" / "reward_functions.py").resolve()) in resolved.notes[0]
    assert run(preset="quickstart").config.reward.fn == "exact"
    assert run("reward.fn=rules").config.reward.fn == "rules"
