"""A reward model on this machine: conversations in, one score each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rlcli.errors import RewardError
from rlcli.models.causal_lm import avoid_cudnn_attention, load_tokenizer, read_model_config
from rlcli.models.load_check import find_non_finite
from rlcli.rewards.armo import ArmoModel
from rlcli.rewards.encoding import Encoder, Row, UnrateableError
from rlcli.rewards.model_files import (
    STARLING,
    Kind,
    check_model_files,
    find_cached_tokenizer,
    kind_of,
)
from rlcli.rewards.starling import (
    BODY,
    BODY_AGAIN,
    CHAT_TEMPLATE,
    MAX_TOKENS,
    REPEATED,
    StarlingModel,
)
from rlcli.types import Reward, Rollout

TOKENS_PER_BATCH = 16_384
MAX_BATCH = 256
LM_HEADS = ("lm_head.", "cls.", "lm_predictions.", "mask_predictions.")
"""Heads that a reward model's checkpoint may keep from its base model; they give no score."""
MODEL_CLASSES: dict[Kind, Any] = {
    "classifier": AutoModelForSequenceClassification,
    "armo": ArmoModel,
    "starling": StarlingModel,
}
BAD_FILES = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, SafetensorError)
"""What loading raises over files that do not fit the class, or are broken."""
NATIVE = (ArmoModel, StarlingModel)
"""Classes of ours: they read the attention mask instead of looking for pad tokens."""


class RewardModel:
    """A `BatchRater` over a loaded model.

    Scores are the model's raw output at the last token (a classifier's at its first), float32.
    On a CPU each rollout is scored by itself: in batches the last bits would depend on which
    rollouts happened to finish together, and a seed would no longer fix a run.
    """

    is_service = False

    def __init__(self, model: Any, tokenizer: Any, *, device: torch.device) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.max_batch = 1 if device.type == "cpu" else MAX_BATCH
        self._encoder = Encoder(
            tokenizer, limit=_limit(model, tokenizer), needs_mark=isinstance(model, ArmoModel)
        )

    def rate(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """Rewards in the order of `rollouts`; a conversation that does not fit is unscored."""
        rewards: list[Reward | None] = [None] * len(rollouts)
        rows: dict[int, Row] = {}
        for index, rollout in enumerate(rollouts):
            try:
                rows[index] = self._encoder.encode(rollout.prompt.messages, rollout.text)
            except UnrateableError as reason:
                rewards[index] = Reward(value=None, error=str(reason))
        for batch in _batches(rows, max_tokens=TOKENS_PER_BATCH):
            scores = self._scores([rows[index] for index in batch])
            for index, score in zip(batch, scores, strict=True):
                rewards[index] = _reward(score)
        assert all(reward is not None for reward in rewards)
        return [reward for reward in rewards if reward is not None]

    def close(self) -> None:
        """Nothing waits."""

    @torch.inference_mode()
    def _scores(self, rows: Sequence[Row]) -> list[float]:
        pad = self._pad_token_id(rows)
        inputs: dict[str, Tensor] = {
            "input_ids": _padded([row.token_ids for row in rows], pad),
            "attention_mask": _padded([[1] * len(row.token_ids) for row in rows], 0),
        }
        if isinstance(self.model, ArmoModel):
            inputs["prompt_ends_B"] = torch.tensor([row.prompt_end for row in rows])
        elif rows[0].type_ids is not None:
            inputs["token_type_ids"] = _padded([row.type_ids or [] for row in rows], 0)
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        if isinstance(self.model, NATIVE):
            return self.model(**inputs).tolist()
        # the class looks for the last token that is not the pad token, and reads the score there
        self.model.config.get_text_config().pad_token_id = pad
        return self.model(**inputs).logits[:, 0].float().tolist()

    def _pad_token_id(self, rows: Sequence[Row]) -> int:
        """A token that no row ends with: else the row would be scored before its end."""
        ends = {row.token_ids[-1] for row in rows}
        size = self.model.config.get_text_config().vocab_size
        own = self.tokenizer.pad_token_id
        if own is not None and own < size and own not in ends:
            return own
        return next(token for token in range(size) if token not in ends)


def load_reward_model(
    folder: Path, *, device: torch.device, dtype: torch.dtype | None = None
) -> RewardModel:
    """The reward model in `folder`, in bfloat16 on CUDA and float32 elsewhere unless told.

    Raises:
        RewardError: weights are missing or would not be used, so that scores would be noise.
        ModelError: config or tokenizer cannot be read.
    """
    check_model_files(folder)
    kind = kind_of(folder)
    config = read_model_config(str(folder))
    tokenizer = load_tokenizer(str(find_cached_tokenizer(folder)))
    tokenizer.truncation_side = "left"
    if kind == "starling" and STARLING in (config.architectures or []):
        tokenizer.chat_template = CHAT_TEMPLATE
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if kind == "armo" and not tokenizer.chat_template:
        raise RewardError(
            f"reward.model={folder} has no chat template, and ArmoRM reads the prompt where the "
            "assistant's turn begins.\nCopy tokenizer_config.json (or chat_template.jinja) beside "
            "its weights."
        )
    avoid_cudnn_attention(device)
    model = _load(folder, kind, dtype)
    model.to(device).eval().requires_grad_(False)
    if problem := find_non_finite(model):
        raise RewardError(
            f"reward.model={folder} has weights that are not finite: {problem}.\n"
            "Every score would be unscored. Copy or download the model again."
        )
    model.config.use_cache = False
    if kind == "classifier":
        _keep_head_exact(model)
    return RewardModel(model, tokenizer, device=device)


def _load(folder: Path, kind: Kind, dtype: torch.dtype) -> Any:
    """The model with all its weights. Raises: RewardError."""
    model, missing, extra = _read(folder, kind, dtype)
    if kind == "starling" and any(name.startswith(BODY) for name in missing):
        model, missing, extra = _read(folder, kind, dtype, key_mapping={f"^{BODY_AGAIN}": BODY})
    name = type(model).__name__
    if missing:
        raise RewardError(
            f"reward.model={folder} lacks {len(missing)} weights of a {name}, "
            f"{missing[0]} among them: they would be random.\n"
            "Is it a language model? Choose a trained reward model, with all its weight files."
        )
    spare = (*LM_HEADS, *(REPEATED if kind == "starling" else ()))
    poolers = f"{model.base_model_prefix}.pooler."
    if extra := [key for key in extra if not key.startswith((*spare, poolers))]:
        raise RewardError(
            f"reward.model={folder} has {len(extra)} weights that a {name} does "
            f"not use, {extra[0]} among them: its scores would not be that model's.\n"
            "Serve it with its own code: --reward_model http://HOST/classify."
        )
    return model


def _read(
    folder: Path, kind: Kind, dtype: torch.dtype, **mapping: Any
) -> tuple[Any, list[str], list[str]]:
    """(model, names of weights that are missing, names that are left over), sorted."""
    wanted: dict[str, Any] = {"num_labels": 1} if kind == "classifier" else {}
    try:
        loaded: Any = MODEL_CLASSES[kind].from_pretrained(
            folder, dtype=dtype, weights_only=True, output_loading_info=True, **wanted, **mapping
        )
    except UnpicklingError as error:
        raise RewardError(
            f"reward.model={folder} has a *.bin with more than weights in it, which is not read: "
            "a pickle can run code.\nIf you trust it, load it with transformers, "
            "model.save_pretrained(DIR), copy its tokenizer there, then --reward_model DIR."
        ) from error
    except BAD_FILES as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RewardError(
            f"reward.model={folder} does not load as a reward model with one score: {first}\n"
            "Choose a sequence classification model with num_labels 1, or serve this one: "
            "--reward_model http://HOST/classify."
        ) from error
    model, found = loaded
    return model, sorted(found["missing_keys"]), sorted(found["unexpected_keys"])


def _limit(model: Any, tokenizer: Any) -> int:
    """Tokens of one conversation at most."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    own = MAX_TOKENS if isinstance(model, StarlingModel) else tokenizer.model_max_length
    return min(positions or own, own, tokenizer.model_max_length)


def _keep_head_exact(model: Any) -> None:
    """Compute a classifier's score in float32: bfloat16 would round 5.03 to 5.0."""
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Module):
            head.float()
            head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


def _batches(rows: dict[int, Row], *, max_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of like length, at most `max_tokens` padded tokens together."""
    batch: list[int] = []
    for index in sorted(rows, key=lambda index: len(rows[index].token_ids), reverse=True):
        # rows come longest first: the first one of a batch is its width
        if batch and (len(batch) + 1) * len(rows[batch[0]].token_ids) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """[B, T] with `fill` on the right: positions are right for every kind of model."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _reward(score: float) -> Reward:
    if math.isfinite(score):
        return Reward(value=score)
    return Reward(value=None, error=f"the reward model's score is {score}")
