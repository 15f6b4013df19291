"""Every command of the guides can be planned, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from guide_texts import commands

from rlcli.config.resolver import resolve
from rlcli.plan import plan_run


@pytest.mark.parametrize("arguments", commands())
def test_a_command_of_the_guides_is_planned(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = [*arguments, "train.device=cuda"]
    resolved = resolve(flags={}, overrides=overrides, files=[], env={}, cwd=tmp_path)
    plan = plan_run(resolved, tmp_path, memory_gib=80).to_json()
    names = [phase["name"] for phase in plan["phases"]]
    assert names[:2] == ["loading", "rollout"]
    assert "update" in names
    assert ("critic" in names) == (resolved.config.algorithm.name == "ppo")
    assert all(phase["peak_gib"] > 0.9 for phase in plan["phases"])
    assert plan["checkpoint_gib"] > 0
    if not plan["fits"]:
        assert plan["suggestions"]


def test_the_states_of_the_ppo_command_of_a_7b_model_are_those_worked_out_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2-7B, float32 states of the torch engine under bfloat16 sampling, in bytes.

    Policy: 7,615,616,512 x (4 + 4 + 8) trained, x 4 for the reference, x 2 for the sampler's copy.
    Critic: without the head of 152,064 x 3,584, with a value head of 3,585: x 16.
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    (arguments,) = [
        words for words in commands()
        if "algorithm.adv_estimator=gae" in words and any("7B" in word for word in words)
    ][:1]  # fmt: skip
    overrides = [*arguments, "train.device=cuda", "model.path=Qwen/Qwen2-7B-Instruct"]
    overrides += ["critic.path=null", "algorithm.kl_loss=true", "train.engine=torch"]
    resolved = resolve(flags={}, overrides=overrides, files=[], env={}, cwd=tmp_path)
    plan = plan_run(resolved, tmp_path, memory_gib=80).to_json()
    states_gib = (7_615_616_512 * 22 + 7_070_622_721 * 16) / 2**30
    assert states_gib == pytest.approx(261.4, abs=0.05)
    assert plan["phases"][1]["states_gib"] == pytest.approx(states_gib, rel=0.01)
    assert plan["model"]["critic_parameters"] == 7_070_622_721
