"""The check at load: a model that passes samples what it trains, and a wrong one is refused."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import build_tiny, model_types
from torch import nn

from rlcli.engines.critic import load_critic
from rlcli.engines.logprobs import response_stats
from rlcli.engines.micro_batches import index_rows, pack_rows
from rlcli.errors import ModelError
from rlcli.models import forward, packed_attention
from rlcli.models.causal_lm import prepare
from rlcli.models.forward import CausalLM
from rlcli.models.load_check import find_non_finite
from rlcli.models.load_check import probe as probe_module
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.collate import ScoredRollouts, collate
from rlcli.rollout.native import NativeSampler
from rlcli.types import Prompt, Reward

CPU = torch.device("cpu")
PROMPTS = [[5], [6, 7, 8, 9], [10, 11, 12, 13, 14, 15, 16, 17, 18]]


class Letters:
    """Enough of a tokenizer."""

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(map(str, ids))


def prob_gap(lm: CausalLM) -> float:
    """Mean difference of a token's probability, sampler against trainer in train mode."""
    prompts = [Prompt(id=str(i), messages=(), token_ids=tuple(p)) for i, p in enumerate(PROMPTS)]
    sampler = NativeSampler(
        lm, Letters(), eos_token_ids=(2, 3, 4), pad_token_id=0, max_num_seqs=64, shares_weights=True
    )
    rollouts = sampler.generate(prompts, SamplingParams(n=3, max_tokens=12), seed=1)
    said = torch.tensor([x for rollout in rollouts for x in rollout.logprobs])
    collected = ScoredRollouts(
        rollouts=rollouts, rewards=[Reward(value=0.0)] * len(rollouts), greedy={}
    )
    batch = collate(collected, needs=frozenset())
    rows = pack_rows(batch, range(len(rollouts)), index_rows(batch), CPU)
    lm.model.train()
    with torch.no_grad():
        trained = response_stats(lm, rows, temperature=1.0, pad_token_id=0).logprobs_N
    return float((said.exp() - trained.exp()).abs().mean())


FAMILIES = {
    # queries and keys wider than values
    "deepseek_v3": "packed",
    "minicpm3": "packed",
    # recurrent layers beside attention
    "jamba": "padded",
    "granitemoehybrid": "padded",
    # get_decoder() is the model itself
    "llama4_text": "padded",
    # get_decoder() is the LM head
    "modernbert-decoder": "packed",
    # logits with a multiplier
    "hyperclovax": "packed",
    "granite": "packed",
    # noise in train mode
    "phimoe": "packed",
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_samples_what_it_trains(model_type: str) -> None:
    if model_type not in model_types():
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    lm = prepare(build_tiny(model_type))
    assert ("packed" if lm.packed else "padded") == FAMILIES[model_type], lm.notes
    assert prob_gap(lm) < 1e-5


@pytest.mark.nightly
@pytest.mark.parametrize("model_type", model_types())
def test_every_causal_model_of_transformers_trains_exactly_or_is_refused(model_type: str) -> None:
    try:
        model = build_tiny(model_type)
    except Exception as error:
        pytest.skip(f"no tiny {model_type}: {str(error).splitlines()[:1]}")
    try:
        lm = prepare(model)
    except ModelError:
        return
    assert prob_gap(lm) < 1e-5


@pytest.mark.parametrize("setting", ["logits_scaling", "logit_scale"])
def test_logits_are_those_of_the_models_own_forward(setting: str) -> None:
    model = build_tiny({"logits_scaling": "granite", "logit_scale": "cohere"}[setting])
    setattr(model.config, setting, 3.0)
    lm = CausalLM(model=model, packed=False, source_dtype=torch.float32)
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits
        found = lm.logits(lm.padded_hidden(ids, torch.ones_like(ids)))
    torch.testing.assert_close(found, own, atol=1e-6, rtol=1e-6)
    assert not prepare(model).head_is_all
    assert prepare(build_tiny("qwen3")).head_is_all


def test_a_decoder_inside_a_model_with_a_head_inside_the_model_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Llama 4 with images: its get_decoder() is the text model with its LM head."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.llama4 import modeling_llama4

    outputs = modeling_llama4.MoeCausalLMOutputWithPast
    monkeypatch.setattr(outputs, "image_outputs", None, raising=False)  # it fails in 5.24
    size = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    text = {
        **size, "vocab_size": 96, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8,
        "num_local_experts": 2, "intermediate_size_mlp": 48, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.2,
    }  # fmt: skip
    vision = {
        **size, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14,
        "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
    }  # fmt: skip
    config = AutoConfig.for_model("llama4", text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).float().eval()
    for parameter in model.parameters():
        if not parameter.isfinite().all() or float(parameter.detach().abs().max()) > 100:
            nn.init.normal_(parameter, std=0.2)  # made empty
    assert type(forward.find_decoder(model)).__name__ == "Llama4TextModel"
    assert prob_gap(prepare(model)) < 1e-5


# -- noise --------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Adds noise behind a module in train mode, as router jitter does."""

    def __init__(self, inner: nn.Module, size: float) -> None:
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y + self.size * torch.randn_like(y) if self.training else y


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_noise_of_a_layer_is_named_and_off_in_training(size: float) -> None:
    model = build_tiny("qwen3")
    model.model.layers[2].mlp = Noisy(model.model.layers[2].mlp, size)
    lm = prepare(model)
    assert any("model.layers.2.mlp" in note for note in lm.notes)
    assert prob_gap(lm) < 1e-5
    lm.model.train()
    mlp = lm.model.model.layers[2].mlp
    assert not mlp.training
    assert mlp.inner.training


def test_router_jitter_is_off_in_training_in_every_layer() -> None:
    lm = prepare(build_tiny("mixtral", router_jitter_noise=0.1))
    assert "model.layers.0.mlp" in lm.notes[0]
    assert prob_gap(lm) < 1e-5


def test_noise_of_a_whole_decoder_layer_is_refused_and_named() -> None:
    model = build_tiny("qwen3")
    kind = type(model.model.layers[1])

    def noisy(self: Any, hidden_states: torch.Tensor, **more: Any) -> torch.Tensor:
        out = kind.forward(self, hidden_states, **more)
        return out + torch.randn_like(out) if self.training else out

    model.model.layers[1].__class__ = type("NoisyLayer", (kind,), {"forward": noisy})
    with pytest.raises(ModelError, match=r"model\.layers\.1 \(NoisyLayer\)"):
        prepare(model)


def test_dropout_that_a_configuration_sets_is_off_without_a_note() -> None:
    model = build_tiny("gpt2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
    lm = prepare(model)
    assert not any("noise" in note for note in lm.notes)
    assert prob_gap(lm) < 1e-5


def test_the_check_moves_no_random_state_and_no_mode() -> None:
    for was_training in (True, False):
        model = build_tiny("mixtral", router_jitter_noise=0.1).train(was_training)
        before = torch.get_rng_state()
        prepare(model)
        assert torch.equal(torch.get_rng_state(), before)
        assert model.training is was_training


# -- wrong models -------------------------------------------------------------------------------


def test_wrong_packed_attention_falls_back_to_padded_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = packed_attention.masked_attention
    monkeypatch.setattr(
        packed_attention, "masked_attention", lambda q, *rest: right(q * 1.1, *rest)
    )
    lm = prepare(build_tiny("qwen3"))
    assert not lm.packed
    assert "packed training" in lm.notes[0]
    assert prob_gap(lm) < 1e-5


@pytest.mark.parametrize("place", ["prefill", "decode"])
def test_a_model_that_samples_something_else_is_refused(place: str) -> None:
    model = build_tiny("jamba")
    kind = type(model)

    @functools.wraps(kind.forward)
    def wrong(self: Any, *inputs: Any, use_cache: bool | None = None, **more: Any) -> Any:
        out = kind.forward(self, *inputs, use_cache=use_cache, **more)
        ids = more.get("input_ids")
        if use_cache and (ids.shape[1] > 1) == (place == "prefill"):
            out.logits = out.logits * 1.2
        return out

    model.__class__ = type("WrongCache", (kind,), {"forward": wrong})
    with pytest.raises(ModelError, match="padded sampling"):
        prepare(model)
    prepare(model, samples=False)  # a critic, or a policy that vLLM samples


def test_a_trainer_that_differs_from_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = forward.CausalLM.logits
    monkeypatch.setattr(forward.CausalLM, "logits", lambda self, h: right(self, h) * 1.01)
    with pytest.raises(ModelError, match="its own forward"):
        prepare(build_tiny("qwen3"))


def test_a_model_whose_forward_fails_is_refused_in_one_sentence() -> None:
    model = build_tiny("qwen3")
    model.model.layers[0].mlp.up_proj = nn.Linear(32, 7, bias=False)
    with pytest.raises(ModelError, match="cannot compute"):
        prepare(model)


def test_attention_limits_longer_than_the_probe_are_not_packed() -> None:
    limited = prepare(build_tiny("llama4_text", attention_chunk_size=1000))
    assert not limited.packed
    windowed = build_tiny(
        "qwen3", use_sliding_window=True, sliding_window=1000, max_window_layers=0
    )
    assert prepare(windowed).packed
    for layer in windowed.model.layers:
        layer.self_attn.sliding_window = None  # the window is in the model's masks only
    windowed.set_attn_implementation("sdpa")
    assert not prepare(windowed).packed


# -- weights and tokens -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.self_attn.q_norm.weight"]
)
def test_a_weight_that_is_not_finite_is_named(name: str, value: float) -> None:
    model = build_tiny("qwen3")
    model.get_parameter(name).data.view(-1)[7] = value
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        prepare(model)


def test_a_router_bias_that_is_not_a_number_is_named() -> None:
    """It is a buffer, and what it does to the choice of experts leaves all outputs finite."""
    model = build_tiny("deepseek_v3")
    name, bias = next((n, b) for n, b in model.named_buffers() if n.endswith("correction_bias"))
    bias[1] = float("nan")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        prepare(model)


def test_masks_among_the_buffers_are_finite_enough() -> None:
    layer = nn.Linear(2, 2)
    layer.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    assert find_non_finite(layer) is None


def test_large_finite_weights_are_finite() -> None:
    layer = nn.Linear(4, 4)
    layer.weight.data.fill_(3e38)
    assert find_non_finite(layer) is None
    layer.bias.data[2] = float("nan")
    assert find_non_finite(layer) == "bias has 1 of 4, first nan at [2]"


def test_a_critic_with_a_weight_that_is_not_finite_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "critic"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        load_critic(str(folder), device=CPU, pad_token_id=0, trust_remote_code=False)


def test_bfloat16_rounding_is_no_difference() -> None:
    for model_type in ("qwen3", "jamba", "deepseek_v3"):
        lm = prepare(build_tiny(model_type).bfloat16())
        assert lm.packed == (model_type != "jamba"), lm.notes


def test_it_costs_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = build_tiny("qwen3"), []
    model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    prepare(model)
    assert len(passes) <= 7


def test_probe_tokens_leave_out_those_that_stand_for_something_else() -> None:
    model = build_tiny("qwen3")
    model.config.image_token_id = 40
    usable = set(probe_module._usable_ids(model).tolist())
    assert not usable & {0, 1, 2, 40}
    assert max(usable) == 95
