"""Mini- and micro-batches: which rollouts are computed together, by prompts, tokens or rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlcli.algos.algorithm import Algorithm
from rlcli.models.packed_attention import GroupLayout
from rlcli.types import Advantages, AllReduce, Batch

Rows = TypeVar("Rows", bound=Batch | Advantages)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowIndex:
    """Lengths and groups of a batch's rows as lists, read off its tensors once.

    written_BT: on the CPU, True on tokens that the policy wrote; None: it wrote all of them.
    """

    lengths: list[int]
    group: list[int]
    prompt_lengths: list[int]
    written_BT: Tensor | None = None


def index_rows(batch: Batch) -> RowIndex:
    """The index of a batch."""
    written_BT = (batch.response_mask_BT != 0).cpu()
    lengths_B = batch.lengths_B.cpu()
    has_holes = bool((written_BT.sum(1) != lengths_B).any())
    return RowIndex(
        lengths=lengths_B.tolist(),
        group=batch.group_B.tolist(),
        prompt_lengths=[len(ids) for ids in batch.prompt_ids],
        written_BT=written_BT if has_holes else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatch:
    """This rank's rows of one mini-batch; it may have none of them, and still takes part.

    learning: those of its rows that the gradient is made of. counts: [2] tokens and rows of all
    ranks, the denominators. num_learning: of all ranks.
    """

    number: int
    rows: list[int]
    learning: list[int]
    counts: Tensor
    num_learning: int


def mini_batches(
    batch: Batch,
    advantages: Advantages,
    num_prompts: int,
    *,
    algorithm: Algorithm,
    all_reduce: AllReduce,
    needs_advantage: bool,
) -> list[MiniBatch]:
    """Rows that take part in the loss, num_prompts prompts of the step at a time.

    The same prompts on any number of ranks. A mini-batch without rows on any rank is left out.
    needs_advantage: whether rows without an advantage change no gradient.
    """
    mask_BT = advantages.loss_mask_BT
    assert mask_BT is not None
    takes_part = (mask_BT.sum(1) > 0).tolist()
    acts = ((advantages.advantages_BT != 0) & (mask_BT > 0)).any(1).tolist()
    rows: list[list[int]] = [[] for _ in range(-(-batch.num_step_prompts // num_prompts))]
    for row, group in enumerate(batch.group_B.tolist()):
        if takes_part[row]:
            rows[batch.prompt_numbers[group] // num_prompts].append(row)
    learning = [[row for row in some if acts[row] or not needs_advantage] for some in rows]
    counts_M3 = torch.stack(
        [
            torch.cat([algorithm.count(mask_BT[some]), torch.tensor([len(few)]).to(mask_BT.device)])
            for some, few in zip(rows, learning, strict=True)
        ]
    )
    counts_M3 = all_reduce(counts_M3)
    return [
        MiniBatch(
            number=number,
            rows=rows[number],
            learning=learning[number],
            counts=counts_M3[number, :2],
            num_learning=num_learning,
        )
        for number, (_, num_rows, num_learning) in enumerate(counts_M3.tolist())
        if num_rows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Rows of a batch, and the packed tokens they cost (each prompt counted once).

    is_filler: it has no rows, and is computed because another rank has one more: sharded weights
    are gathered by all ranks together.
    """

    rows: tuple[int, ...]
    num_tokens: int
    is_filler: bool = False


def plan_micro_batches(
    rows: Sequence[int],
    index: RowIndex,
    *,
    max_tokens: int | None = None,
    max_num_seqs: int | None = None,
) -> list[MicroBatch]:
    """`rows` in order, cut so that no micro-batch is over the budget unless one row alone is.

    A group that is cut has its prompt computed again in the next micro-batch.
    """
    lengths, group, prompt_lengths = index.lengths, index.group, index.prompt_lengths
    batches: list[MicroBatch] = []
    current: list[int] = []
    tokens, prompts = 0, set[int]()
    for row in rows:
        cost = lengths[row] + (0 if group[row] in prompts else prompt_lengths[group[row]])
        over_tokens = max_tokens is not None and tokens + cost > max_tokens
        over_rows = max_num_seqs is not None and len(current) >= max_num_seqs
        if current and (over_tokens or over_rows):
            batches.append(MicroBatch(rows=tuple(current), num_tokens=tokens))
            current, tokens, prompts = [], 0, set()
            cost = lengths[row] + prompt_lengths[group[row]]
        current.append(row)
        tokens += cost
        prompts.add(group[row])
    if current:
        batches.append(MicroBatch(rows=tuple(current), num_tokens=tokens))
    return batches


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """Some rows of a batch as flat tokens on the device.

    token_ids_N: prompts, then responses, each without its last token, which nothing reads.
    targets_N: all response tokens that the policy wrote, rows in order. mask_bT places those in a
    padded [b, T] block whose T is the longest response of these rows. responses_N: all response
    tokens, those of an environment too; response_lengths has their number in each row.
    """

    token_ids_N: Tensor
    targets_N: Tensor
    mask_bT: Tensor
    layout: GroupLayout
    responses_N: Tensor
    response_lengths: list[int]

    def unpack(self, values_N: Tensor) -> Tensor:
        """[b, T] with zeros elsewhere, from one value per token that the policy wrote."""
        block = values_N.new_zeros(self.mask_bT.shape)
        return block.masked_scatter(self.mask_bT, values_N)


def pack_rows(
    batch: Batch, rows: Sequence[int], index: RowIndex, device: torch.device
) -> PackedRows:
    """The chosen rows, each of their prompts once."""
    used = sorted({index.group[row] for row in rows})
    place = {g: i for i, g in enumerate(used)}
    row_lengths = [index.lengths[row] for row in rows]
    width = max(max(row_lengths), 1)
    ids_BT = batch.token_ids_BT
    left_bT = (torch.tensor(row_lengths)[:, None] - torch.arange(width)).to(ids_BT.device)
    mask_bT = left_bT > 0
    ids_bT = ids_BT[torch.tensor(rows, device=ids_BT.device), :width]
    prompts = [token for g in used for token in batch.prompt_ids[g]]
    layout = GroupLayout(
        [index.prompt_lengths[g] for g in used],
        row_lengths,
        [place[index.group[row]] for row in rows],
        device,
    )
    responses_N = targets_N = ids_bT[mask_bT].to(device)
    if index.written_BT is not None:
        is_target_bT = index.written_BT[rows, :width].to(mask_bT.device) & mask_bT
        layout.predict_only(is_target_bT[mask_bT].to(device))
        mask_bT, targets_N = is_target_bT, ids_bT[is_target_bT].to(device)
    return PackedRows(
        token_ids_N=torch.cat(
            [torch.tensor(prompts, device=device), ids_bT[left_bT > 1].to(device)]
        ),
        targets_N=targets_N,
        mask_bT=mask_bT.to(device),
        layout=layout,
        responses_N=responses_N,
        response_lengths=row_lengths,
    )


FILLER = MicroBatch(rows=(), num_tokens=0, is_filler=True)


def filler_rows(token_id: int, device: torch.device) -> PackedRows:
    """One response token behind one prompt token, for a pass that counts for nothing."""
    tokens = torch.tensor([token_id], device=device)
    mask_bT = torch.ones(1, 1, dtype=torch.bool, device=device)
    layout = GroupLayout([1], [1], [0], device)
    return PackedRows(
        token_ids_N=tokens,
        targets_N=tokens,
        mask_bT=mask_bT,
        layout=layout,
        responses_N=tokens,
        response_lengths=[1],
    )


def on_device(value: Rows, device: torch.device) -> Rows:
    """The same with its tensors on a device."""
    tensors = {
        field.name: item.to(device)
        for field in fields(value)
        if isinstance(item := getattr(value, field.name), Tensor)
    }
    return replace(value, **tensors)


def take_rows(value: Rows, rows: Sequence[int], width: int, device: torch.device) -> Rows:
    """The chosen rows, cut to `width` response positions, on the device.

    Which axis a field has is read off its shape suffix: `_BT` or `_B`.
    """
    index = torch.tensor(rows, dtype=torch.long)
    changed: dict[str, Any] = {}
    for field in fields(value):
        item = getattr(value, field.name)
        if isinstance(item, Tensor) and field.name.endswith("_BT"):
            changed[field.name] = item[index.to(item.device), :width].to(device)
        elif isinstance(item, Tensor) and field.name.endswith("_B"):
            changed[field.name] = item[index.to(item.device)].to(device)
        elif field.name == "parts" and isinstance(item, Mapping):
            changed["parts"] = {k: v[index.to(v.device)].to(device) for k, v in item.items()}
    return replace(value, **changed)
