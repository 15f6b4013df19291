"""The engine: the same gradient however the batch is cut, and nothing learned from masked rows."""

from __future__ import annotations

import zlib
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_parts import config, make_batch, make_engine, one_update
from saved_models import save_tiny_model

from rlcli.algos.algorithm import Algorithm
from rlcli.config.schema import Config
from rlcli.errors import TrainingError


def gradients(model: Path, settings: Config, *, packed: bool = True) -> dict[str, torch.Tensor]:
    """Policy (and critic) gradients of one mini-batch, read before clipping."""
    engine = make_engine(model, settings)
    if not packed:
        engine.policy.packed = False
        engine.policy.model.set_attn_implementation("sdpa")
    found: dict[str, torch.Tensor] = {}
    for name in ("policy", "critic"):
        updater = engine.policy_updater if name == "policy" else engine.critic_updater
        if updater is None:
            continue

        def read(factor: float, updater: Any = updater, name: str = name) -> tuple[float, bool]:
            for key, parameter in updater.parameters.items():
                if parameter.grad is not None:
                    found[f"{name}.{key}"] = parameter.grad.clone()
            return 0.0, True

        updater.step = read
    one_update(engine, settings)
    return found


AGGREGATIONS = [
    "token_mean",
    "token_sum",
    "seq_mean_token_sum",
    "seq_mean_token_mean",
    "seq_mean_token_sum_norm",
]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_any_micro_batch_gives_the_same_gradient(tiny_model: Path, aggregation: str) -> None:
    whole = gradients(tiny_model, config(algorithm__aggregation=aggregation))
    for cut in (
        {"train__tokens_per_micro_batch": 30},
        {"train__tokens_per_micro_batch": 1},
        {"train__dynamic_batch": False, "train__rows_per_micro_batch": 3},
    ):
        parts = gradients(tiny_model, config(algorithm__aggregation=aggregation, **cut))
        assert parts.keys() == whole.keys()
        scale = max(float(g.abs().max()) for g in whole.values())
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=1e-6 * scale, rtol=1e-6)


@pytest.mark.parametrize("loss", ["clip", "gspo", "cispo", "sapo", "gpg", "kl_cov", "clip_cov"])
def test_micro_batches_add_up_with_every_term_on(tiny_model: Path, loss: str) -> None:
    settings: dict[str, Any] = {
        "algorithm__loss": loss,
        "algorithm__kl_loss": True,
        "algorithm__kl_in_reward": True,
        "algorithm__entropy_coef": 0.01,
        "algorithm__kl_cov_ratio": 0.2,
    }
    whole = gradients(tiny_model, config(**settings))
    parts = gradients(tiny_model, config(**settings, train__tokens_per_micro_batch=25))
    scale = max(float(g.abs().max()) for g in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6 * scale, rtol=1e-6)


def test_critic_micro_batches_add_up(tiny_model: Path) -> None:
    settings = {"algorithm__advantage": "gae"}
    whole = gradients(tiny_model, config(**settings))
    parts = gradients(tiny_model, config(**settings, train__tokens_per_micro_batch=25))
    assert any(name.startswith("critic.value_head") for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=2e-6, rtol=2e-6)


def test_padded_batches_give_the_packed_gradient(tiny_model: Path) -> None:
    packed = gradients(tiny_model, config())
    padded = gradients(tiny_model, config(), packed=False)
    for name, gradient in packed.items():
        torch.testing.assert_close(padded[name], gradient, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradient(tiny_model: Path) -> None:
    from rlcli.models.causal_lm import enable_gradient_checkpointing

    settings = config()
    plain = gradients(tiny_model, settings)
    engine = make_engine(tiny_model, settings)
    enable_gradient_checkpointing(engine.policy.model)
    found: dict[str, torch.Tensor] = {}

    def read(factor: float) -> tuple[float, bool]:
        updater = engine.policy_updater
        found.update({k: p.grad for k, p in updater.parameters.items() if p.grad is not None})
        return 0.0, True

    engine.policy_updater.step = read  # type: ignore[method-assign]
    one_update(engine, settings)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain[f"policy.{name}"], atol=1e-6, rtol=1e-6)


def test_the_head_in_chunks_changes_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gradients(tiny_model, config(algorithm__entropy_coef=0.01))
    monkeypatch.setattr("rlcli.engines.logprobs.CHUNK_ELEMENTS", 2000)
    parts = gradients(tiny_model, config(algorithm__entropy_coef=0.01))
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-6)


def test_an_unscored_rollout_changes_no_weight(tiny_model: Path) -> None:
    """The same batch with other tokens in its unscored row ends in the same weights."""
    settings = config()
    ends = []
    for token in (5, 77):
        engine = make_engine(tiny_model, settings)
        algorithm = Algorithm(settings, corrects_sampler=False)
        some = make_batch()
        some.token_ids_BT[1, : int(some.lengths_B[1])] = token
        batch = engine.annotate(some, algorithm)
        advantages = algorithm.advantages(batch, all_reduce=engine.all_reduce)
        engine.update(batch, advantages, algorithm, step=0)
        ends.append({k: v.clone() for k, v in engine.weights()})
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name])


def test_lora_trains_adapters_only_and_the_reference_is_the_base(tiny_model: Path) -> None:
    settings = config(lora__rank=4, algorithm__kl_loss=True, train__lr=0.05, train__ppo_epochs=3)
    engine = make_engine(tiny_model, settings)
    base = {k: v.clone() for k, v in engine.weights() if "lora_" not in k}
    before = make_engine(tiny_model, config(train__ppo_epochs=2))
    algorithm = Algorithm(settings, corrects_sampler=False)
    one_update(engine, settings)
    for name, tensor in engine.weights():
        if "lora_" not in name:
            assert torch.equal(tensor, base[name])
    batch = engine.annotate(make_batch(), algorithm)
    expected = before.annotate(make_batch(), algorithm_without_kl())
    assert batch.ref_logprobs_BT is not None
    torch.testing.assert_close(
        batch.ref_logprobs_BT, expected.old_logprobs_BT, atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(batch.old_logprobs_BT, expected.old_logprobs_BT, atol=1e-3)


def algorithm_without_kl() -> Algorithm:
    return Algorithm(config(), corrects_sampler=False)


def test_the_reference_stays_where_the_policy_began(tiny_model: Path) -> None:
    settings = config(algorithm__kl_loss=True, train__lr=0.05)
    engine = make_engine(tiny_model, settings)
    first = one_update(engine, settings)
    second = one_update(engine, settings, step=1)
    assert abs(first["kl_divergence"]) < 1e-6
    assert abs(second["kl_divergence"]) > 1e-4


def test_critic_warmup_leaves_the_policy_alone(tiny_model: Path) -> None:
    settings = config(algorithm__advantage="gae", critic__warmup_steps=1, critic__lr=0.01)
    engine = make_engine(tiny_model, settings)
    before = {k: v.clone() for k, v in engine.weights()}
    record = one_update(engine, settings, step=0)
    assert "value_loss" in record
    assert "policy_loss" not in record
    assert all(torch.equal(v, before[k]) for k, v in engine.weights())
    record = one_update(engine, settings, step=1)
    assert "policy_loss" in record
    assert any(not torch.equal(v, before[k]) for k, v in engine.weights())


def test_the_critic_learns_the_returns(tiny_model: Path) -> None:
    settings = config(
        algorithm__advantage="gae", critic__lr=0.01, critic__epochs=4, critic__cliprange_value=10.0
    )
    engine = make_engine(tiny_model, settings)
    losses = [one_update(engine, settings, step=i)["value_loss"] for i in range(5)]
    assert losses[-1] < 0.6 * losses[0]


def test_learning_rate_zero_and_warmup(tiny_model: Path) -> None:
    settings = config(train__lr_warmup_steps=3, train__lr=0.04)
    engine = make_engine(tiny_model, settings)
    rates = [one_update(engine, settings, step=i)["lr"] for i in range(5)]
    assert rates == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.04])


def test_a_gradient_that_is_not_finite_is_skipped_and_the_third_ends_the_run(
    tiny_model: Path,
) -> None:
    settings = config()
    engine = make_engine(tiny_model, settings)
    before = {k: v.clone() for k, v in engine.weights()}
    parameter = next(iter(engine.policy_updater.parameters.values()))
    parameter.register_hook(lambda g: g * float("nan"))
    for _ in range(2):
        assert one_update(engine, settings)["skipped_updates"] == 1
    assert all(torch.equal(v, before[k]) for k, v in engine.weights())
    with pytest.raises(TrainingError, match="not finite 3 updates in a row"):
        one_update(engine, settings)


def test_a_healthy_critic_does_not_hide_a_policy_that_is_not_finite(tiny_model: Path) -> None:
    settings = config(algorithm__advantage="gae")
    engine = make_engine(tiny_model, settings)
    parameter = next(iter(engine.policy_updater.parameters.values()))
    parameter.register_hook(lambda g: g * float("nan"))
    one_update(engine, settings)
    one_update(engine, settings, step=1)
    with pytest.raises(TrainingError, match="policy's gradient"):
        one_update(engine, settings, step=2)


def test_dropout_of_an_adapter_is_off_when_log_probs_are_only_read(tiny_model: Path) -> None:
    settings = config(lora__rank=4, lora__dropout=0.5, train__lr=0.05, train__ppo_epochs=2)
    engine = make_engine(tiny_model, settings)
    one_update(engine, settings)
    algorithm = Algorithm(settings, corrects_sampler=False)
    engine.policy.model.train()
    first = engine.annotate(make_batch(), algorithm).old_logprobs_BT
    second = engine.annotate(make_batch(), algorithm).old_logprobs_BT
    assert torch.equal(first, second)
    assert engine.policy.model.training


def test_one_long_response_does_not_widen_the_short_ones(tiny_model: Path) -> None:
    """Attention pads a response to those of its own length, not to the longest of all."""
    from rlcli.models.packed_attention import GroupLayout

    layout = GroupLayout([5, 5], [200] + [8] * 50, [0] + [1] * 50, torch.device("cpu"))
    _, masks = layout._masks_for(None)
    assert sum(mask.numel() for mask in masks) < 200 * 205 + 50 * 32 * 40


def test_state_comes_back_to_the_bit(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(algorithm__advantage="gae", critic__lr=0.01)
    engine = make_engine(tiny_model, settings)
    one_update(engine, settings)
    as_it_was = engine.state().copied()
    one_update(engine, settings, step=1)
    as_it_was.save(tmp_path)
    again = make_engine(tiny_model, settings)
    again.load_state(tmp_path)
    one_update(again, settings, step=1)
    for name, tensor in again.weights():
        assert torch.equal(tensor, dict(engine.weights())[name])
    assert engine.critic is not None
    assert again.critic is not None
    for a, b in zip(engine.critic.parameters(), again.critic.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft 0.21.2
@pytest.mark.parametrize("merge", [False, True])
def test_the_saved_adapter_gives_the_trained_policy(
    tiny_model: Path, tmp_path: Path, merge: bool
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from rlcli.models.causal_lm import load_tokenizer

    settings = config(lora__rank=4, train__lr=0.05)
    engine = make_engine(tiny_model, settings)
    one_update(engine, settings)
    tokenizer = load_tokenizer(str(tiny_model))
    engine.save_model(tmp_path / "final", tokenizer, merge_lora=merge)
    if merge:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final" / "merged")
    else:
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        loaded = PeftModel.from_pretrained(base, tmp_path / "final")
    ids = torch.tensor([[5, 6, 7, 8]])
    engine.policy.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(ids).logits, engine.policy.model(ids).logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_saved_model_is_plain_hugging_face_in_the_dtype_it_came_in(
    tmp_path: Path, is_tied: bool
) -> None:
    import json

    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = save_tiny_model(
        tmp_path / "bf16", "Qwen2", dtype="bfloat16", tie_word_embeddings=is_tied
    )
    settings = config()
    engine = make_engine(source, settings)
    one_update(engine, settings)
    tokenizer = AutoTokenizer.from_pretrained(source)
    engine.save_model(tmp_path / "final", tokenizer, merge_lora=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    trained = dict(engine.weights())
    for name, tensor in loaded.named_parameters():
        torch.testing.assert_close(tensor, trained[name].to(torch.bfloat16))
    with safe_open(str(tmp_path / "final" / "model.safetensors"), "pt") as saved:
        assert ("lm_head.weight" in saved.keys()) is not is_tied  # noqa: SIM118  # no mapping
    assert "rlcli" not in (tmp_path / "final" / "config.json").read_text()
    assert json.loads((tmp_path / "final" / "tokenizer_config.json").read_text())


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize(("stage", "is_refused"), [(1, True), (2, True), (3, False)])
def test_gradients_that_ranks_have_in_other_orders_are_not_learned_from(
    stage: int, is_refused: bool
) -> None:
    from rlcli.engines.deepspeed_engine import ShardedUpdater

    updater: Any = ShardedUpdater.__new__(ShardedUpdater)
    other = zlib.crc32(b"[1, 0]")
    updater.stage, updater._ready = stage, [0, 1]
    updater.ranks = SimpleNamespace(gather=lambda own: [own, other])
    with pytest.raises(TrainingError, match="different orders") if is_refused else nullcontext():
        updater._check_order()
    updater._ready = [1, 0]
    updater._check_order()
