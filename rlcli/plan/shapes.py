"""A model's shape, read from its config.json, and its parameter count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlcli.errors import ModelError

QKV_BIAS = ("qwen2", "qwen2_moe")
QK_NORM = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text")
FOUR_NORMS = ("gemma2", "gemma3", "gemma3_text")
TIED = ("gemma", "gemma2", "gemma3", "gemma3_text", "gpt2")
"""Types with tied embeddings if the config does not specify it."""
ENCODERS = ("deberta-v2", "bert", "roberta", "xlm-roberta", "modernbert")
UNGATED = ("gpt2", "gpt_neox", "opt", "phi", "starcoder2", "nemotron", *ENCODERS)
OLD_KEYS = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner",),
    "num_local_experts": ("num_experts", "n_routed_experts"),
}
GEMMA3_DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
}
"""Values missing from the config.json of a Gemma 3 with a vision part."""
STORED = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes that memory depends on. stored_bytes: of one weight in the checkpoint.

    norms: number per layer, each as wide as the model. extra_parameters: those outside layers,
    embedding, head and last norm.
    """

    name: str
    kind: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = True
    qkv_bias: bool = False
    other_bias: bool = False
    gated: bool = True
    qk_norm: bool = False
    norms: int = 2
    norm_bias: bool = False
    has_head: bool = True
    experts: int = 0
    experts_per_token: int = 0
    shared_intermediate: int = 0
    extra_parameters: int = 0
    stored_bytes: int = 2

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding."""
        return self.vocabulary * self.hidden

    @property
    def head(self) -> int:
        """Parameters of the LM head; 0 if it shares the embedding's."""
        return self.embedding if self.has_head and not self.tied else 0

    @property
    def mlp_width(self) -> int:
        """Inner width of the MLP for one token (all its experts together)."""
        return self.intermediate * max(1, self.experts_per_token) + self.shared_intermediate

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of a layer's matrices, without experts."""
        width, kv = self.query_width, self.kv_width
        matrices = {
            "q_proj": (self.hidden, width),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (width, self.hidden),
        }
        inner = self.shared_intermediate if self.experts else self.intermediate
        if inner and self.gated:
            matrices["gate_proj"] = (self.hidden, inner)
        if inner:
            matrices |= {"up_proj": (self.hidden, inner), "down_proj": (inner, self.hidden)}
        return matrices

    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        matrices = sum(i * o for i, o in self.matrices().values())
        biases = (self.query_width + 2 * self.kv_width) * self.qkv_bias
        if self.other_bias:
            up = self.intermediate * (2 if self.gated else 1)
            biases += 2 * self.hidden + up
        norms = self.norms * self.hidden * (2 if self.norm_bias else 1)
        norms += 2 * self.head_dim * self.qk_norm
        matrices_per_expert = (3 if self.gated else 2) * self.hidden * self.intermediate
        router = self.hidden * self.experts
        gate = self.hidden if self.experts and self.shared_intermediate else 0
        return matrices + biases + norms + self.experts * matrices_per_expert + router + gate

    @property
    def parameters(self) -> int:
        """Number of all parameters, shared ones counted once."""
        last_norm = self.hidden * (2 if self.norm_bias else 1)
        body = self.layers * self.layer_parameters() + self.embedding + last_norm
        return body + self.head + self.extra_parameters

    def adapter_parameters(self, rank: int, targets: str | list[str] = "all-linear") -> int:
        """Parameters of LoRA adapters on the named matrices of every layer.

        A string, or a list of names that match none of them, means all matrices.
        """
        matrices = self.matrices()
        suffixes = [] if isinstance(targets, str) else [name.rpartition(".")[2] for name in targets]
        named = [size for name, size in matrices.items() if name in suffixes]
        return self.layers * rank * sum(i + o for i, o in named or matrices.values())


def shape_of(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """Build the shape from the values of a config.json.

    Raises: ModelError if a size that memory depends on is missing.
    """
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, Mapping) else dict(config)
    if values.get("model_type") in ("gemma3", "gemma3_text"):
        values = {**GEMMA3_DEFAULTS, **values}
    for new, old_keys in OLD_KEYS.items():
        for old in old_keys:
            if values.get(new) is None and values.get(old) is not None:
                values[new] = values[old]
    missing = [key for key in ("hidden_size", "num_hidden_layers") if not _is_size(values, key)]
    missing += [key for key in ("num_attention_heads", "vocab_size") if not _is_size(values, key)]
    if missing == ["num_attention_heads"]:
        raise ModelError(
            f"the config.json of {name} has no num_attention_heads: rlcli plan knows only models "
            "with attention layers.\nTraining does not need a plan: rlcli train --dry_run checks "
            "this model."
        )
    if missing:
        raise ModelError(
            f"the config.json of {name} has no {', '.join(missing)}: its memory cannot be "
            "planned.\nGive --model a causal language model."
        )
    return _shape(values, name=name)


def _is_size(values: Mapping[str, Any], key: str) -> bool:
    return isinstance(values.get(key), int) and values[key] > 0


def _shape(values: Mapping[str, Any], *, name: str) -> ModelShape:
    kind = str(values.get("model_type", ""))
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    experts = values.get("num_local_experts") or 0
    inner = values.get("intermediate_size") or 4 * hidden
    if experts and values.get("moe_intermediate_size"):
        inner = values["moe_intermediate_size"]
    is_encoder = kind in ENCODERS
    plain = kind in UNGATED
    stored = str(values.get("dtype") or values.get("torch_dtype") or "bfloat16")
    tied = values.get("tie_word_embeddings")
    positions = values.get("max_position_embeddings") or values.get("n_positions") or 0
    return ModelShape(
        name=name,
        kind=kind,
        layers=values["num_hidden_layers"],
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or hidden // heads,
        vocabulary=values["vocab_size"],
        tied=kind in TIED if tied is None else bool(tied),
        qkv_bias=kind in QKV_BIAS or plain or bool(values.get("attention_bias")),
        other_bias=plain or bool(values.get("mlp_bias")),
        gated=not plain,
        qk_norm=kind in QK_NORM,
        norms=4 if kind in FOUR_NORMS else 2,
        norm_bias=plain,
        has_head=not is_encoder,
        experts=experts,
        experts_per_token=values.get("num_experts_per_tok") or 0,
        shared_intermediate=values.get("shared_expert_intermediate_size") or 0,
        extra_parameters=_extra(values, kind, hidden=hidden, positions=positions),
        stored_bytes=STORED.get(stored.removeprefix("torch."), 2),
    )


def _extra(values: Mapping[str, Any], kind: str, *, hidden: int, positions: int) -> int:
    """Parameters of position tables and their norms."""
    if kind == "deberta-v2":
        buckets = values.get("position_buckets") or 0
        return 2 * buckets * hidden + 2 * hidden
    return positions * hidden if kind in ("gpt2", "opt", *ENCODERS) else 0
