"""Compiled layers must be invisible: the same log-probs and gradients, compiled once."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from packed_parts import GROUP, PROMPTS, RESPONSES, build
from tiny_runs import tiny_run, write_inputs
from torch import Tensor
from torch._dynamo.utils import counters

from rlcli.config.resolver import resolve
from rlcli.config.schema import LoraConfig
from rlcli.engines.lora import add_lora
from rlcli.errors import ConfigError
from rlcli.models import compile
from rlcli.models.causal_lm import CausalLM, enable_gradient_checkpointing, prepare
from rlcli.models.compile import check_compiler, compile_layers
from rlcli.models.packed_attention import GroupLayout
from rlcli.trainer.run_plan import make_plan

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs a compiler: apt-get install g++"
)
pytestmark = [  # torch 2.13 while it compiles
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    torch.compiler.reset()
    counters.clear()


def logprobs(lm: CausalLM, rows: list[int]) -> Tensor:
    """Of the chosen rows' tokens, packed or padded as the model is."""
    prompts = [PROMPTS[GROUP[row]] for row in rows]
    responses = [RESPONSES[row] for row in rows]
    targets = torch.tensor([token for row in responses for token in row])
    if lm.packed:
        lengths = [len(p) for p in prompts], [len(r) for r in responses]
        layout = GroupLayout(*lengths, range(len(rows)), CPU)
        read = (*prompts, *(r[:-1] for r in responses))
        flat = torch.tensor([token for row in read for token in row])
        hidden = lm.hidden(flat, layout.position_ids, layout)[layout.predicts_N]
    else:
        width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask, predicts = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for i, (p, r) in enumerate(zip(prompts, responses, strict=True)):
            ids[i, : len(p) + len(r)] = torch.tensor(p + r)
            mask[i, : len(p) + len(r)] = 1
            predicts[i, len(p) - 1 : len(p) + len(r) - 1] = True
        hidden = lm.padded_hidden(ids, mask)[predicts]
    return lm.logits(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def with_gradients(lm: CausalLM, rows: list[int]) -> list[Tensor]:
    lm.model.zero_grad()
    out = logprobs(lm, rows)
    out.mean().backward()
    return [out.detach(), *(p.grad.clone() for p in lm.model.parameters() if p.grad is not None)]


RAGGED = [[0, 1, 2], [3, 4, 5, 6], [1, 2], [0, 2, 4, 6], [5, 6, 3]]


def check_exact(lm: CausalLM) -> None:
    lm.model.train()
    expected = [with_gradients(lm, rows) for rows in RAGGED]
    compile_layers(lm.model)
    first = with_gradients(lm, RAGGED[0])
    num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs > 0
    actual = [first, *(with_gradients(lm, rows) for rows in RAGGED[1:])]
    assert counters["stats"]["unique_graphs"] == num_graphs
    for a, b in zip(actual, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_model_is_exact_and_ragged_lengths_compile_nothing_anew() -> None:
    lm = prepare(build("Qwen2", {}))
    assert lm.packed
    check_exact(lm)


@needs_compiler
@pytest.mark.nightly
@pytest.mark.parametrize("case", ["checkpointing", "lora", "windows", "padded"])
def test_a_compiled_model_is_exact_with(case: str) -> None:
    kinds = {
        "windows": ("Gemma3Text", {"head_dim": 8, "sliding_window": 4}),
        "padded": ("Gemma2", {"head_dim": 8, "sliding_window": 4}),
    }
    lm = prepare(build(*kinds.get(case, ("Qwen2", {}))))
    assert lm.packed == (case != "padded")
    if case == "lora":
        add_lora(lm.model, LoraConfig(rank=2))
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    if case == "checkpointing":
        enable_gradient_checkpointing(lm.model)
    check_exact(lm)


@needs_compiler
def test_sampling_and_copies_run_uncompiled() -> None:
    lm = prepare(build("Qwen2", {}))
    expected = logprobs(lm, RAGGED[0])
    compile_layers(lm.model)
    with torch.inference_mode():
        torch.testing.assert_close(logprobs(lm, RAGGED[0]), expected, atol=1e-6, rtol=1e-6)
    copied = deepcopy(lm)
    torch.testing.assert_close(logprobs(copied, RAGGED[0]), expected, atol=1e-6, rtol=1e-6)
    assert counters["stats"]["unique_graphs"] == 0


def test_a_run_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "model.compile=True (from the command line)"
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"no-such-compiler is not on this machine"):
        check_compiler(CPU, where)
    monkeypatch.setattr(compile, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package triton"):
        check_compiler(torch.device("cuda"), where)
    with pytest.raises(ConfigError, match="computes on mps"):
        check_compiler(torch.device("mps"), where)


@needs_compiler
@pytest.mark.nightly
def test_the_setting_compiles_the_passes_of_a_run(tiny_model: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    given = [
        "algorithm.name=grpo", f"model.path={tiny_model}", "model.dtype=float32",
        f"data.train={tmp_path}/a.jsonl", "data.val=[]", "data.max_prompt_tokens=40",
        "train.device=cpu",
        "data.max_response_tokens=6", "rollout.n=4", "train.prompts_per_step=4",
        "train.mini_batch_prompts=2", "train.max_steps=2", "train.lr=1e-3",
        f"reward.fn={tmp_path}/reward.py:compute_score",
    ]  # fmt: skip
    plain = tiny_run(tmp_path, "plain", given)
    assert counters["stats"]["unique_graphs"] == 0
    seen = tiny_run(tmp_path, "compiled", [*given, "model.compile=true"])
    assert counters["stats"]["unique_graphs"] > 0
    for a, b in zip(seen.metrics, plain.metrics, strict=True):
        assert a["reward_mean"] == b["reward_mean"]
        assert a["policy_loss"] == pytest.approx(b["policy_loss"], abs=1e-5)


def test_a_run_is_refused_before_its_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    given = ["model.path=nowhere", "model.compile=true", "train.device=cpu"]
    resolved = resolve(overrides=given, flags={}, files=[], env={}, cwd=tmp_path)
    with pytest.raises(ConfigError, match=r"model.compile=true.* needs a C\+\+ compiler"):
        make_plan(resolved)
