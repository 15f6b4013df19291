"""The FlexAttention kernel on CUDA: what the load-time probe asks, model by model."""

from __future__ import annotations

import pytest
import torch
import transformers

from rlcli.models.flex_attention import FlexLayout, why_not_flex
from rlcli.models.packed_attention import GroupLayout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # the compiler's own
]
SHAPES = {
    "Qwen2.5-0.5B": ("Qwen2", {"hidden_size": 896, "heads": 14, "num_kv": 2}),
    "Qwen2.5-1.5B": ("Qwen2", {"hidden_size": 1536, "heads": 12, "num_kv": 2}),
    "windows": ("Mistral", {"hidden_size": 512, "heads": 8, "num_kv": 2, "sliding_window": 40}),
    "heads of 80": ("Llama", {"hidden_size": 320, "heads": 4, "num_kv": 4}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_agrees_with_the_buckets(name: str, dtype: torch.dtype) -> None:
    kind, shape = SHAPES[name]
    sizes = {k: v for k, v in shape.items() if k not in ("heads", "num_kv")}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, num_attention_heads=shape["heads"], num_key_value_heads=shape["num_kv"]
    )
    assert why_not_flex(config, device=torch.device("cuda"), dtype=dtype) is None


def test_memory_stays_linear_in_tokens() -> None:
    device = torch.device("cuda")
    layout = GroupLayout([512] * 8, [1024] * 64, [i // 8 for i in range(64)], device)
    n = layout.position_ids.shape[1]
    q = torch.randn(n, 14, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(n, 2, 64, device=device, dtype=torch.bfloat16) for _ in range(2))
    attend = FlexLayout(layout).attend
    attend(0, q, k, v, scale=None, window=None).sum().backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(0, q, k, v, scale=None, window=None).sum().backward()
    used = torch.cuda.max_memory_allocated() - before
    assert used < 20 * q.numel() * q.element_size()
