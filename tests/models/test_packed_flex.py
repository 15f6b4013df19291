"""One kernel over two intervals per query: the same attention as the padded buckets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_parts import all_at_once, build
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch.nn.attention import flex_attention as torch_flex_attention

from rlcli.models import flex_attention
from rlcli.models.causal_lm import _attend_in_one_kernel, enable_gradient_checkpointing, prepare
from rlcli.models.flex_attention import (
    BLOCK,
    FLEX_ATTENTION,
    FlexLayout,
    Intervals,
    attend_blocks,
    block_tables,
    flex_mask,
    visible_keys,
    why_not_flex,
)
from rlcli.models.packed_attention import ATTENTION, GroupLayout

pytestmark = [  # torch 2.13 while it compiles
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
]
CPU = torch.device("cpu")
LAYOUTS = {
    "several groups, an empty row": ([3, 7, 1], [5, 2, 4, 0, 9], [0, 0, 1, 1, 2]),
    "rows out of order": ([300, 170, 1], [500, 2, 290, 0, 199], [0, 1, 1, 0, 2]),
    "one group": ([300], [100, 220, 129], [0, 0, 0]),
    "groups of one": ([128, 5], [127, 300], [0, 1]),
    "prompts alone": ([300, 20], [], []),
}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that is compiled, as it is, with gradients on the CPU too."""
    monkeypatch.setattr(flex_attention, "compiled_kernel", lambda: attend_blocks)
    monkeypatch.setattr(torch_flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(torch_flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(torch_flex_attention, "_warn_once", lambda *words, **more: None)


def tensors(layout: GroupLayout, *, heads: int, num_kv: int, head: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    n = layout.position_ids.shape[1]
    counts = (heads, num_kv, num_kv, heads)
    return [torch.randn(n, count, head, generator=draw) for count in counts]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("window", "shape"), [(None, (4, 2, 24)), (4, (3, 3, 7)), (150, (4, 1, 20))]
)
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_outputs_and_gradients_equal_those_of_the_buckets(
    lengths: tuple[list[int], list[int], list[int]],
    window: int | None,
    shape: tuple[int, int, int],
) -> None:
    layout = GroupLayout(*lengths, CPU)
    q, k, v, pull = tensors(layout, heads=shape[0], num_kv=shape[1], head=shape[2])
    results = []
    for attention in (FlexLayout(layout), layout):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attention.attend(0, *inputs, scale=0.3, window=window)
        results.append([out, *torch.autograd.grad(out, inputs, pull)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def sees(seen: Intervals) -> Callable[..., Tensor]:
    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_prompt = (key >= seen.prompt_from_N[query]) & (key < seen.prompt_to_N[query])
        return in_prompt | ((key >= seen.own_from_N[query]) & (key <= query))

    return mask


@pytest.mark.parametrize("window", [None, 4, 150])
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_blocks_are_those_that_torch_finds_in_the_whole_mask(
    lengths: tuple[list[int], list[int], list[int]], window: int | None
) -> None:
    mask = flex_mask(GroupLayout(*lengths, CPU), window)
    length = len(mask.seen.own_from_N)
    found = torch_flex_attention.create_block_mask(
        sees(mask.seen), 1, 1, length, length, device="cpu"
    )
    names = [
        f"{full}{side}_{what}"
        for side in ("kv", "q")
        for full in ("", "full_")
        for what in ("num_blocks", "indices")
    ]
    for name, block in zip(names, mask.blocks, strict=True):
        assert torch.equal(block, getattr(found, name)), name


@settings(max_examples=30, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    responses=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3)), max_size=6),
    window=st.none() | st.integers(1, 400),
)
def test_a_full_block_hides_nothing_and_an_absent_one_shows_nothing(
    prompts: list[int], responses: list[tuple[int, int]], window: int | None
) -> None:
    group = [g % len(prompts) for _, g in responses]
    seen = visible_keys(GroupLayout(prompts, [r for r, _ in responses], group, CPU), window)
    at = torch.arange(len(seen.own_from_N))
    dense = sees(seen)(at, at, at[:, None], at[None])
    n = len(at) // BLOCK
    count = dense.view(n, BLOCK, n, BLOCK).sum((1, 3))
    partial, full = block_tables(seen)
    assert not (partial & full).any()
    assert torch.equal(partial | full, count > 0)
    assert (count[full] == BLOCK * BLOCK).all()


@pytest.mark.slow
def test_the_compiled_kernel_is_exact_and_compiled_once_for_all_lengths_and_windows() -> None:
    counters.clear()
    with inductor.patch(compile_threads=1), torch.no_grad():
        try:
            for name in ("rows out of order", *LAYOUTS):
                layout = GroupLayout(*LAYOUTS[name], CPU)
                q, k, v, _ = tensors(layout, heads=6, num_kv=2, head=32)
                for window in (None, 4, 150):
                    expected = layout.attend(0, q, k, v, scale=0.3, window=window)
                    out = FlexLayout(layout).attend(0, q, k, v, scale=0.3, window=window)
                    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        except Exception as error:
            if "compiler" in str(error) or "not supported for CPU" in str(error):
                pytest.skip(f"needs g++ and AVX2: {str(error).splitlines()[0]}")
            raise
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("kind", "extra"),
    [("Qwen2", {}), ("Mistral", {"head_dim": 8, "sliding_window": 4})],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_gives_the_same_logprobs_and_gradients(
    kind: str, extra: dict[str, object], checkpointing: bool
) -> None:
    lm = prepare(build(kind, extra))
    expected = all_at_once(lm)
    expected.mean().backward()
    gradients = [p.grad.clone() for p in lm.model.parameters() if p.grad is not None]
    lm.model.zero_grad()
    lm.model.set_attn_implementation(FLEX_ATTENTION)
    if checkpointing:
        enable_gradient_checkpointing(lm.model)
        lm.model.train()
    actual = all_at_once(lm)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    actual.mean().backward()
    got = [p.grad for p in lm.model.parameters() if p.grad is not None]
    for a, b in zip(got, gradients, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("uncompiled")
def test_under_autocast_attention_is_computed_in_its_dtype() -> None:
    layout = GroupLayout([3, 7], [5, 2], [0, 1], CPU)
    q, k, v, _ = tensors(layout, heads=2, num_kv=1, head=8)
    with torch.autocast("cpu", torch.bfloat16):
        out = FlexLayout(layout).attend(0, q, k, v, scale=None, window=None)
    assert out.dtype == torch.bfloat16
    expected = layout.attend(0, q, k, v, scale=None, window=None)
    torch.testing.assert_close(out.float(), expected, atol=3e-2, rtol=3e-2)


QWEN = transformers.Qwen2Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_finds_nothing_where_the_kernel_is_exact(dtype: torch.dtype) -> None:
    assert why_not_flex(QWEN, device=CPU, dtype=dtype) is None


@pytest.mark.usefixtures("uncompiled")
def test_the_probe_tells_a_kernel_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        flex_attention, "compiled_kernel", lambda: lambda *all: attend_blocks(*all) * 1.01
    )
    reason = why_not_flex(QWEN, device=CPU, dtype=torch.float32)
    assert reason == "it differs by 0.01"


def test_the_probe_tells_a_kernel_that_cannot_be_had() -> None:
    reason = why_not_flex(QWEN, device=CPU, dtype=torch.float32)
    assert reason is not None
    assert "does not support backward on CPU" in reason


@pytest.mark.usefixtures("uncompiled")
def test_a_model_takes_the_kernel_where_it_agrees_and_stays_exact() -> None:
    lm = prepare(build("Qwen2", {}))
    plain = "sdpa"
    _attend_in_one_kernel(lm, plain)
    assert lm.model.config._attn_implementation == FLEX_ATTENTION
    assert lm.notes == []


def test_a_model_stays_with_padded_buckets_where_there_is_no_kernel_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flex_attention, "compiled_kernel", lambda: 1 / 0)
    lm = prepare(build("Qwen2", {}))
    _attend_in_one_kernel(lm, "sdpa")
    assert lm.packed
    assert lm.model.config._attn_implementation == ATTENTION
    (note,) = lm.notes
    assert "attends in padded buckets (slower): ZeroDivisionError" in note
