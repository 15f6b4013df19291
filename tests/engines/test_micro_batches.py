"""Micro-batches within their budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlcli.engines.micro_batches import RowIndex, plan_micro_batches


def test_a_prompt_counts_once_per_micro_batch() -> None:
    """Prompts of 10 and 20 tokens, two responses of 5 each: 10 + 5 + 5, then 20 + 5 + 5."""
    index = RowIndex(lengths=[5, 5, 5, 5], group=[0, 0, 1, 1], prompt_lengths=[10, 20])
    plan = plan_micro_batches(range(4), index, max_tokens=30)
    assert [(m.rows, m.num_tokens) for m in plan] == [((0, 1), 20), ((2, 3), 30)]


def test_a_group_that_is_cut_pays_its_prompt_again() -> None:
    index = RowIndex(lengths=[5, 5, 5], group=[0, 0, 0], prompt_lengths=[10])
    plan = plan_micro_batches(range(3), index, max_tokens=20)
    assert [(m.rows, m.num_tokens) for m in plan] == [((0, 1), 20), ((2,), 15)]


def test_rows_are_counted_where_rows_are_the_budget() -> None:
    index = RowIndex(lengths=[9] * 5, group=[0] * 5, prompt_lengths=[1])
    plan = plan_micro_batches(range(5), index, max_num_seqs=2)
    assert [m.rows for m in plan] == [(0, 1), (2, 3), (4,)]


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    budget=st.integers(1, 80),
    data=st.data(),
)
def test_every_row_once_in_order_and_within_budget(
    lengths: list[int], budget: int, data: st.DataObject
) -> None:
    prompts = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    group = sorted(data.draw(st.integers(0, len(prompts) - 1)) for _ in lengths)
    index = RowIndex(lengths=lengths, group=group, prompt_lengths=prompts)
    plan = plan_micro_batches(range(len(lengths)), index, max_tokens=budget)
    assert [row for micro in plan for row in micro.rows] == list(range(len(lengths)))
    for micro in plan:
        used = {group[row] for row in micro.rows}
        assert micro.num_tokens == sum(lengths[r] for r in micro.rows) + sum(
            prompts[g] for g in used
        )
        assert micro.num_tokens <= budget or len(micro.rows) == 1
