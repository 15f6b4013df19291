"""`rlcli config` and `rlcli presets`: what is shown can be given back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlcli.cli.main import main
from rlcli.config.schema import defaults


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `rlcli arguments`."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KL_COEF", raising=False)


def settings(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, _ = say(capsys, "config", "show", "--json", *arguments)
    assert code == 0
    return json.loads(out)["config"]


def test_show_names_the_origin_of_every_value_that_is_not_a_default(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.yaml").write_text("train: {grad_clip: 0.5}\n")
    monkeypatch.setenv("KL_COEF", "0.01")
    words = ["--algo", "grpo", "--config", "my.yaml", "rollout.n=6", "--lr", "1e-5"]
    code, out, _ = say(capsys, "config", "show", "--sources", "--changed", *words)
    assert code == 0
    lines = {line.split(":")[0]: line.rpartition("# ")[2] for line in out.splitlines()}
    assert lines["algorithm.name"] == "flag --algo"
    assert lines["algorithm.advantage"] == "preset grpo"
    assert lines["train.grad_clip"] == "file my.yaml"
    assert lines["algorithm.kl_loss_coef"] == "env KL_COEF"
    assert lines["rollout.n"] == "override rollout.n=6"
    assert lines["train.lr"] == "flag --lr"


def test_what_show_prints_is_a_config_file_that_means_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--algo", "dapo", "rollout.n=6", "reward.weights={a: 1, b: 0.5}", "lora.rank=4"]
    prompt = "a: 'b' # c\n{prompt}"
    words += ["--use_api_reward", "--rm_scoring_prompt", prompt]
    _, out, _ = say(capsys, "config", "show", *words)
    (tmp_path / "shown.yaml").write_text(out)
    assert settings(capsys, "--config", "shown.yaml") == settings(capsys, *words)


@pytest.mark.parametrize("name", ["ppo", "grpo", "dapo", "gspo", "quickstart", "gsm8k-0.5b"])
def test_a_copied_preset_means_what_the_preset_means(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = say(capsys, "presets", "copy", name)
    assert code == 0
    assert f"{name}.yaml" in out
    assert settings(capsys, "--config", f"{name}.yaml") == settings(capsys, "--preset", name)
    code, _, err = say(capsys, "presets", "copy", name)
    assert code == 2
    assert "is there already" in err


def test_init_writes_what_differs_from_the_defaults(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, _ = say(capsys, "config", "init", "--algo", "rloo", "--lr", "3e-6")
    assert code == 0
    text = (tmp_path / "rlcli.yaml").read_text()
    assert "train.lr: 3e-06" in text
    words = ["--algo", "rloo", "--lr", "3e-6"]
    assert settings(capsys, "--config", "rlcli.yaml") == settings(capsys, *words)


def test_validate_names_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("algorithm: {adv_estimator: rloo}\n")
    (tmp_path / "bad.yaml").write_text("algorithm: {adv_estimator: rloo}\nrollout: {n: 1}\n")
    code, out, _ = say(capsys, "config", "validate", "good.yaml")
    assert (code, "fine (rloo)" in out) == (0, True)
    code, _, err = say(capsys, "config", "validate", "bad.yaml")
    assert code == 2
    assert "rollout.n >= 2, got 1 (from file bad.yaml)" in err


def test_diff_shows_both_values(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = say(capsys, "presets", "diff", "dr_grpo", "grpo")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert rows["algorithm.scale_by_std"] == ["false", "true"]
    assert rows["rollout.n"] == ["8", "4"]
    assert "algorithm.name" not in rows
    assert say(capsys, "config", "diff", "grpo", "grpo")[1] == "no difference\n"
    code, _, err = say(capsys, "config", "diff", "grpo", "nothing")
    assert code == 2
    assert "no preset, no config file and no run directory" in err


def test_show_checks_what_train_checks(capsys: pytest.CaptureFixture[str]) -> None:
    got = settings(capsys, "train.micro_batch_size=32")
    assert got["train.dynamic_batch"] is False
    for command in (["show"], ["init"]):
        code, _, err = say(capsys, "config", *command, "--algo", "grpo", "rollout.n=1")
        assert (code, "rollout.n >= 2" in err) == (2, True)


def test_diff_compares_what_would_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text("train.micro_batch_size: 32\n")
    rows = json.loads(say(capsys, "config", "diff", "ppo", "rows.yaml", "--json")[1])
    assert rows["train.dynamic_batch"] == [True, False]


def test_the_schema_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = say(capsys, "config", "schema")
    schema = json.loads(out)
    names = {
        name
        for section in schema["$defs"].values()
        for name, field in section["properties"].items()
        if field.get("description")
    }
    assert {key.rpartition(".")[2] for key in defaults()} <= names


def test_a_key_of_the_judge_does_not_belong_into_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "api_reward_config.yaml").write_text("api_key: sk-canary\n")
    code, out, err = say(capsys, "config", "show")
    assert code == 2
    assert "api_key does not belong" in err
    assert "sk-canary" not in out + err


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("lr: 3", "the judge has no setting lr. Put train.lr|lr into a file for --config"),
        ("train.lr: 3", "the judge has no setting train.lr. Put train.lr into a file"),
        ("temperature: 0.2", "the judge has no setting temperature."),
        ("max_tokens: 100", "the judge has no setting max_tokens."),
        ("panel: [claude: claude-3-haiku]", "expected a valid string"),
        ("auth_token: sk-canary", "auth_token does not belong into a file"),
        ("model: a\nrm_model: b", "model and rm_model are the same setting"),
    ],
)
def test_the_judge_s_file_takes_the_judge_s_settings_only(
    line: str, problem: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "api_reward_config.yaml").write_text(f"{line}\n")
    code, _, err = say(capsys, "config", "show")
    assert code == 2
    head, _, tail = problem.partition("|")
    assert head in err and tail in err  # noqa: PT018
    assert "rollout.temperature" not in err
    assert "sk-canary" not in err


@pytest.mark.parametrize("prefix", ["", "rm_"])
def test_the_guides_reward_files_are_read_where_they_lie(
    prefix: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    judge = f"use_api_reward: true\n{prefix}api_type: openai\n{prefix}model: gpt-4o-mini\n"
    (tmp_path / "api_reward_config.yaml").write_text(
        judge + f"{prefix}prompt_preset: math\n{prefix}votes: 3\n"
    )
    (tmp_path / "reward_model_config.yaml").write_text(
        "composite_reward:\n  enable: true\n  weights:\n    rm_score: 0.7\n    rule_score: 0.3\n"
    )
    got = settings(capsys)
    judge_keys = {"enabled": True, "provider": "openai", "model": "gpt-4o-mini", "prompt": "math"}
    for key, value in {**judge_keys, "votes": 3}.items():
        assert got[f"reward.judge.{key}"] == value
    assert got["reward.composite"] is True
    assert got["reward.weights"] == {"rm_score": 0.7, "rule_score": 0.3}
    assert settings(capsys, "--rm_model", "gpt-4o")["reward.judge.model"] == "gpt-4o"
