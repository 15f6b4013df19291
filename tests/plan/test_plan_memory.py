from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlcli.config.resolved import Resolved
from rlcli.plan import passes
from rlcli.plan.engine import resolve_engine
from rlcli.plan.machine import Machine
from rlcli.plan.memory import MemoryPlan, Models, plan_memory
from rlcli.plan.models import known_config
from rlcli.plan.shapes import ModelShape, shape_of
from rlcli.plan.states import Numerics, adapters, numerics_of, policy_states
from rlcli.plan.workload import Rows, workload_of
from rlcli.system.hardware import GIB

Settings = Callable[..., Resolved]
CPU = Machine(kind="cpu", name="CPU", memory_gib=64.0)
GPU = Machine(kind="cuda", name="GPU", memory_gib=80.0, host_gib=500.0)
P_7B = 7_615_616_512


def known(name: str) -> ModelShape:
    config = known_config(name)
    assert config is not None
    return shape_of(config, name=name)


def planned(resolved: Resolved, machine: Machine, **models: Any) -> MemoryPlan:
    policy = models.pop("policy", None) or known("Qwen2.5-0.5B")
    both = Models(policy=policy, **models)
    return plan_memory(resolved.config, both, machine=machine, num_val=0)


def test_zero_3_shares_18_bytes_a_parameter_among_8_gpus(settings: Settings) -> None:
    config = settings("train.engine=deepspeed", "train.zero_stage=3", "train.n_gpus=8").config
    numerics = numerics_of(config, device="cuda", devices=1)
    states = policy_states(known("Qwen2.5-7B"), config, numerics)
    assert states.device == P_7B * 18 / 8
    assert states.device / GIB == pytest.approx(15.958, abs=0.001)


@pytest.mark.parametrize(
    ("stage", "bytes_each"),
    # bfloat16: 2 weights, 2 gradients, 12 optimizer; 4 GPUs share what the stage shares
    [(0, 16.0), (1, 4 + 12 / 4), (2, 2 + 4 / 4 + 12 / 4), (3, 18 / 4)],
)
def test_every_zero_stage_shares_what_it_should(
    settings: Settings, stage: int, bytes_each: float
) -> None:
    config = settings(
        "train.engine=deepspeed", f"train.zero_stage={stage}", "train.n_gpus=4"
    ).config
    numerics = numerics_of(config, device="cuda", devices=1)
    assert policy_states(known("Qwen2.5-7B"), config, numerics).device == P_7B * bytes_each


def test_unset_every_gpu_of_the_machine_takes_its_share(settings: Settings) -> None:
    sharded = settings("train.engine=deepspeed", "train.nnodes=2")
    assert planned(sharded, replace(GPU, devices=8)).numerics.ranks == 16
    alone = settings("train.engine=deepspeed", "train.n_gpus=1")
    assert planned(alone, replace(GPU, devices=8)).numerics.ranks == 1


def test_offloaded_optimizer_states_are_on_the_host(settings: Settings) -> None:
    config = settings(
        "train.engine=deepspeed", "train.offload_optimizer=true", "train.n_gpus=2"
    ).config
    numerics = numerics_of(config, device="cuda", devices=1)
    states = policy_states(known("Qwen2.5-7B"), config, numerics)
    assert (states.optimizer, states.host) == (0.0, P_7B * 12 / 2)


def test_adapters_alone_have_gradients_and_moments(settings: Settings) -> None:
    config = settings("lora.rank=8", "model.dtype=float32").config
    shape = known("Qwen2.5-0.5B")
    # per layer, rank x (in + out): q and o 896+896, k and v 896+128, gate, up and down 896+4864
    count = 24 * 8 * (2 * 1792 + 2 * 1024 + 3 * 5760)
    numerics = numerics_of(config, device="cpu", devices=1)
    states = policy_states(shape, config, numerics)
    assert states.weights == 4 * (494_032_768 + count)
    assert (states.gradients, states.optimizer) == (4 * count, 8 * count)


def test_adapters_are_counted_where_they_are_wanted(settings: Settings) -> None:
    shape = known("Qwen2.5-0.5B")
    some = settings("lora.rank=8", "lora.targets=[q_proj,self_attn.v_proj]").config
    assert adapters(shape, some) == 24 * 8 * (896 + 896 + 896 + 128)
    unknown = settings("lora.rank=8", "lora.targets=[c_attn]").config
    assert adapters(shape, unknown) == adapters(shape, settings("lora.rank=8").config)


def test_keys_and_values_of_one_token_of_qwen_7b_take_56_kib_in_bfloat16() -> None:
    assert passes.kv_bytes_per_token(known("Qwen2.5-7B"), width=2) == 2 * 28 * 4 * 128 * 2 == 57_344


def test_sampling_buffers_grow_by_half_up_to_the_last_column() -> None:
    shape = known("Qwen2.5-0.5B")
    rows = Rows(rows=4, prompts=2, prompt_length=100, response_length=200)
    # 164 columns, then 247, then 300; one layer's keys of 247 exist while they move
    one = 2 * 24 * 128 * 4
    moved = 4 * 128 * 4 * 247
    assert passes.native_kv_bytes(shape, rows, width=4) == 4 * 300 * one + moved


def test_logits_never_exceed_one_chunk() -> None:
    shape = known("Qwen2.5-0.5B")
    rows = Rows(rows=1000, prompts=1, prompt_length=10, response_length=100)
    assert 0.99 * 2**28 < passes.chunk_bytes(shape, rows) <= 2**28


def test_micro_batches_are_cut_as_the_engine_cuts_them(settings: Settings) -> None:
    from rlcli.engines.micro_batches import RowIndex, plan_micro_batches

    config = settings(
        "train.prompts_per_step=6", "train.mini_batch_prompts=6", "rollout.n=5",
        "data.max_prompt_tokens=7", "data.max_response_tokens=11",
        "train.tokens_per_micro_batch=100",
    ).config  # fmt: skip
    index = RowIndex(
        lengths=[11] * 30, group=[row // 5 for row in range(30)], prompt_lengths=[7] * 6
    )
    cuts = plan_micro_batches(range(30), index, max_tokens=100)
    work = workload_of(config, num_val=0)
    assert work.num_update == len(cuts)
    assert work.update.tokens == max(cut.num_tokens for cut in cuts)


def test_evaluation_may_sample_more_rows_than_training(settings: Settings) -> None:
    config = settings("train.prompts_per_step=4", "rollout.val_n=2").config
    assert workload_of(config, num_val=100).rollout.rows == 200


def test_phases_are_those_of_the_run(settings: Settings) -> None:
    shape = known("Qwen2.5-0.5B")
    names = [p.name for p in planned(settings(), CPU).phases]
    assert names == ["loading", "rollout", "logprobs", "update"]
    names = [p.name for p in planned(settings(), CPU, critic=shape, reward=shape).phases]
    assert names == ["loading", "rollout", "logprobs", "critic", "update", "reward_model"]


def test_a_peak_is_the_sum_of_its_parts(settings: Settings) -> None:
    for phase in planned(settings(), CPU).phases:
        parts = (
            phase.states_gib + phase.activations_gib + phase.logits_gib + phase.rollout_gib
        ) + phase.overhead_gib
        assert phase.peak_gib == pytest.approx(parts)


@pytest.mark.parametrize(
    "change",
    [
        "train.tokens_per_micro_batch=2048",
        "model.gradient_checkpointing=true",
        "model.dtype=bfloat16",
        "lora.rank=8",
    ],
)
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "cuda"])
def test_what_saves_memory_lowers_the_peak(
    settings: Settings, change: str, machine: Machine
) -> None:
    before = planned(settings("model.dtype=float32"), machine).largest.peak_gib
    assert planned(settings("model.dtype=float32", change), machine).largest.peak_gib < before


def test_the_reference_costs_one_float32_copy(settings: Settings) -> None:
    with_kl = planned(settings("algorithm.kl_loss=true"), CPU).phases[1].states_gib
    without = planned(settings("algorithm.kl_loss=false"), CPU).phases[1].states_gib
    assert (with_kl - without) * GIB == pytest.approx(4 * 494_032_768)


def test_vllm_takes_its_share_of_the_gpu(settings: Settings) -> None:
    plan = planned(settings("rollout.engine=vllm", "rollout.memory_fraction=0.4"), GPU)
    assert plan.phases[1].rollout_gib == pytest.approx(32.0)


def test_without_a_known_limit_nothing_is_said_to_fit(settings: Settings) -> None:
    machine = Machine(kind="cuda", name="GPU", memory_gib=None)
    assert {p.fits for p in planned(settings(), machine).phases} == {None}


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("rank", [0, 4])
def test_saved_activations_are_what_torch_saves(kind: str, rank: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlcli.config.schema import LoraConfig
    from rlcli.engines.lora import add_lora
    from rlcli.models.causal_lm import prepare
    from rlcli.models.packed_attention import GroupLayout

    config = AutoConfig.for_model(
        kind, hidden_size=64, intermediate_size=192, num_hidden_layers=4, vocab_size=100,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    lm = prepare(AutoModelForCausalLM.from_config(config))
    if rank:
        add_lora(lm.model, LoraConfig(rank=rank))
    lm.model.train()
    layout = GroupLayout([16] * 2, [33] * 6, [0, 0, 0, 1, 1, 1], lm.device)  # 32 are read
    weights = {p.untyped_storage().data_ptr() for p in lm.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = lm.hidden(torch.zeros(224, dtype=torch.long), layout.position_ids, layout)
    found = sum(storage.nbytes() for storage in kept.values())
    assert hidden.shape == (224, 64)
    rows = Rows(rows=6, prompts=2, prompt_length=16, response_length=32)
    numerics = Numerics(half=False, lora_rank=rank, deepspeed=False, ranks=1, device="cpu")
    shape = shape_of(config.to_dict(), name=kind)
    predicted = passes.saved_bytes(shape, rows, numerics) - 4 * 64 * rows.response_tokens
    assert predicted == pytest.approx(found, rel=0.03)


def test_a_critic_beside_adapters_is_trained_whole(settings: Settings) -> None:
    shape = known("Qwen2.5-0.5B")
    alone = planned(settings("lora.rank=8", algo="ppo"), GPU).phases[1].states_gib
    both = planned(settings("lora.rank=8", algo="ppo"), GPU, critic=shape).phases[1].states_gib
    # a tied head goes with the embedding: only the value head of 896 + 1 is new
    assert (both - alone) * GIB == pytest.approx(16 * (494_032_768 + 897))


def test_large_blocks_leave_nothing_in_the_heap(settings: Settings) -> None:
    # 16,384 tokens x 896 x 4 bytes are 56 MiB: such a block goes back at once
    overrides = ["train.tokens_per_micro_batch=16384", "train.mini_batch_prompts=256"]
    update = planned(settings(*overrides), CPU).phases[-1]
    rollouts = 256 * 4 * 1024 * 130
    gradients = 0.7 * 4 * 24 * known("Qwen2.5-0.5B").layer_parameters()
    assert update.overhead_gib * GIB == pytest.approx(0.04 * GIB + rollouts + gradients)


P_32B = 32_763_876_352
SHARDED = ("train.engine=deepspeed", "train.zero_stage=3", "train.n_gpus=8", "train.nnodes=2")


def test_zero_3_holds_the_whole_model_on_a_gpu_only_for_the_native_sampler(
    settings: Settings,
) -> None:
    """32B in bfloat16 on 16 GPUs: 2 bytes a parameter whole, as much for the native sampler's
    copy, and a sixteenth of it for the reference; the states of a step are a sixteenth of 18.
    For vLLM it is whole in host memory only: on the GPU a sixteenth, and the largest tensor."""
    no_kl = ("algorithm.kl_loss=false", "rollout.engine=vllm")
    plan = planned(settings(*SHARDED, *no_kl), GPU, policy=known("Qwen2.5-32B"))
    loading, rollout = plan.phases[0], plan.phases[1]
    assert loading.name == "loading"
    assert loading.states_gib * GIB == P_32B * 2 / 16 + 4 * 152_064 * 5120
    assert rollout.states_gib * GIB == pytest.approx(P_32B * 18 / 16)
    assert plan.loading_host_gib * GIB == 8 * P_32B * 2
    native = planned(settings(*SHARDED, "algorithm.kl_loss=true"), GPU, policy=known("Qwen2.5-32B"))
    assert native.phases[0].states_gib * GIB == P_32B * (2 + 2 / 16 + 2)
    assert native.phases[0].fits is False


def test_the_torch_engine_loads_float32_and_a_critic_is_loaded_whole(settings: Settings) -> None:
    shape = known("Qwen2.5-7B")
    plan = planned(
        settings("algorithm.kl_in_reward=false", "train.n_gpus=2", algo="ppo"),
        GPU, policy=shape, critic=shape,
    )  # fmt: skip
    critic = P_7B - 152_064 * 3584 + 3585
    # policy in float32, the sampler's copy in bfloat16, the critic in float32
    assert plan.phases[0].states_gib * GIB == 4 * P_7B + 2 * P_7B + 4 * critic
    assert plan.loading_host_gib * GIB == 2 * 4 * P_7B
    assert planned(settings(), CPU).loading_host_gib == 0


@pytest.mark.parametrize(
    ("width", "fraction", "fits"),
    [(1, 0.5, False), (1, 0.8, True), (2, 0.4, True), (2, 0.3, False)],
)
def test_vllm_needs_its_weights_and_one_rollout_within_its_share(
    settings: Settings, width: int, fraction: float, fits: bool
) -> None:
    """32B in bfloat16: 61.03 GiB of weights; 64 layers x 8 heads x 128 x 2 x 2 bytes a token,
    2,048 tokens: 0.5 GiB. Both are divided by tensor_parallel. The GPU has 80 GiB."""
    plan = planned(
        settings(
            *SHARDED, "rollout.engine=vllm", f"rollout.tensor_parallel={width}",
            f"rollout.memory_fraction={fraction}", "data.max_prompt_tokens=1024",
            "data.max_response_tokens=1024",
        ),
        GPU, policy=known("Qwen2.5-32B"),
    )  # fmt: skip
    assert plan.vllm is not None
    assert plan.vllm.needs_gib * GIB * width == P_32B * 2 + 2048 * 64 * 8 * 128 * 2 * 2
    assert plan.vllm.share_gib == pytest.approx(80 * fraction)
    assert plan.vllm.fits is fits
    if not fits:
        assert plan.phases[1].fits is False


def test_a_server_of_vllm_has_nine_tenths_of_its_gpus_by_default(settings: Settings) -> None:
    plan = planned(settings("rollout.engine=vllm_server"), GPU, policy=known("Qwen2.5-32B"))
    assert plan.vllm is not None
    assert plan.vllm.share_gib == pytest.approx(72)
    running = settings("rollout.engine=vllm_server", "rollout.url=http://gpu1:8000")
    assert planned(running, GPU, policy=known("Qwen2.5-32B")).vllm is None


def test_fsdp_shares_16_bytes_a_parameter_among_8_gpus(settings: Settings) -> None:
    config = settings("train.engine=fsdp", "train.n_gpus=8").config
    states = policy_states(
        known("Qwen2.5-7B"), config, numerics_of(config, device="cuda", devices=1)
    )
    assert (states.device, states.host) == (P_7B * 16 / 8, 0.0)
    moved = settings("train.engine=fsdp", "train.n_gpus=8", "train.offload_params=true").config
    states = policy_states(known("Qwen2.5-7B"), moved, numerics_of(moved, device="cuda", devices=1))
    assert (states.device, states.host) == (0.0, P_7B * 16 / 8)


def test_fsdp_loads_a_share_and_adapters_share_their_frozen_base(settings: Settings) -> None:
    """7B on 8 GPUs, with a reference of 2 bytes a parameter; vLLM samples."""
    several = ("train.engine=fsdp", "train.n_gpus=8", "rollout.engine=vllm")
    plan = planned(settings(*several, "algorithm.kl_loss=true"), GPU, policy=known("Qwen2.5-7B"))
    assert plan.phases[0].states_gib * GIB == pytest.approx(P_7B * (4 + 2) / 8)
    lora = settings(*several, "lora.rank=8").config
    frozen = policy_states(
        known("Qwen2.5-7B"), lora, numerics_of(lora, device="cuda", devices=1)
    ).weights
    count = adapters(known("Qwen2.5-7B"), lora)
    assert frozen == P_7B * 2 / 8 + count * 4 / 8


@pytest.mark.parametrize(
    ("name", "words", "engine"),
    [
        ("Qwen2.5-7B", ["train.n_gpus=8"], "fsdp"),
        ("Qwen2.5-7B", ["train.n_gpus=1"], "auto"),
        ("Qwen2.5-7B", ["train.n_gpus=8", "train.engine=torch"], "torch"),
        ("Qwen2.5-0.5B", ["train.n_gpus=8"], "auto"),
    ],
)
def test_auto_takes_fsdp_if_several_processes_cannot_each_hold_the_run(
    settings: Settings, name: str, words: list[str], engine: str
) -> None:
    resolved = settings(*words, "rollout.engine=vllm", "data.max_response_tokens=512")
    models = Models(policy=known(name))
    settled = resolve_engine(resolved, models, GPU, num_val=0)
    assert settled.config.train.engine == engine
    assert any("takes fsdp" in note for note in settled.notes) == (engine == "fsdp")
