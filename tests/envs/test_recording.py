"""Calls of an agent as rows of tokens: what goes on, what begins anew, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import QWEN, schema, tokenizer_with

from rlcli.envs.chat import ApiError, ChatRequest, Completion, TokenRequest, read_chat
from rlcli.envs.recording import (
    ChatTexts,
    Conversation,
    OpenCall,
    Recorder,
    RowLimits,
    num_shared_tokens,
    with_tokens,
)
from rlcli.rollout.base import SamplingParams, finished_rollout
from rlcli.types import Prompt, Rollout

END = 3  # <|im_end|>
TOOL = schema("look", k="integer")
LIMITS = RowLimits(max_prompt_tokens=400, max_row_tokens=400, max_turn_tokens=50, max_turns=8)


def texts(template: str | None = QWEN) -> ChatTexts:
    return ChatTexts(
        tokenizer_with(template),
        end_ids=(END,),
        tool_format="auto",
        system_prompt=None,
        template_kwargs={},
        max_reply_tokens=512,
    )


def recorder(template: str | None = QWEN, *, place: int = 0, **changes: int) -> Recorder:
    limits = {name: getattr(LIMITS, name) for name in RowLimits.__slots__} | changes
    return Recorder(texts(template), RowLimits(**limits), place=place)


def encode(text: str) -> tuple[int, ...]:
    return tuple(tokenizer_with(None)(text, add_special_tokens=False)["input_ids"])


def request(*messages: dict[str, Any], tools: bool = False, **more: Any) -> ChatRequest:
    body = {"messages": list(messages), **({"tools": [TOOL]} if tools else {}), **more}
    return read_chat(body)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def sampled(call: OpenCall, text: str | tuple[int, ...], *, ends: bool = True) -> Rollout:
    ids = encode(text) if isinstance(text, str) else text
    ids = (*ids, END) if ends else ids
    return finished_rollout(
        tokenizer_with(None),
        Prompt(id="p", messages=(), token_ids=call.context),
        ids,
        [-0.5] * len(ids),
        finish_reason="stop" if ends else "length",
        policy_version=0,
        params=SamplingParams(n=1, max_tokens=50),
    )


def take(one: Recorder, asked: ChatRequest | TokenRequest, text: Any, **how: Any) -> Completion:
    call = one.open(asked)
    return one.finish(call, sampled(call, text, **how))


def reply(one: Completion) -> dict[str, Any]:
    return {"role": "assistant", "content": one.message.content}


def only(one: Recorder) -> Conversation:
    (row,) = one.rows()
    return row


def test_a_longer_conversation_is_one_row_of_what_was_sampled() -> None:
    one = recorder()
    first = take(one, request(user("12")), "3 4")
    take(one, request(user("12"), reply(first), user("56")), "7")
    row = only(one)
    whole = tokenizer_with(QWEN).apply_chat_template(
        [user("12"), reply(first), user("56"), {"role": "assistant", "content": "7"}],
        tokenize=False,
    )
    assert row.prompt_ids + tuple(row.ids) == encode(whole.removesuffix("\n"))
    written = [token for token, own in zip(row.ids, row.mask, strict=True) if own]
    assert tuple(written) == (*encode("3 4"), END, *encode("7"), END)
    assert [value for value, own in zip(row.logprobs, row.mask, strict=True) if not own] == [
        0.0
    ] * row.mask.count(0)


def test_odd_tokens_of_a_turn_stay_as_they_are() -> None:
    """Half a letter is shown as a mark that has other tokens."""
    one = recorder()
    odd = (*encode("a"), encode("é")[0])
    first = take(one, request(user("12")), odd)
    assert encode(first.message.content) != odd
    take(one, request(user("12"), reply(first), user("no")), "7")
    assert tuple(only(one).ids[: len(odd) + 1]) == (*odd, END)


@pytest.mark.parametrize("content", ["  3 4\n", "3 4"])
def test_outer_spaces_and_thoughts_may_be_left_out(content: str) -> None:
    one = recorder()
    take(one, request(user("12")), "<think>hm</think> 3 4")
    spelled = {"role": "assistant", "content": content, "refusal": None, "tool_calls": None}
    take(one, request(user("12"), spelled, user("5")), "7")
    assert len(one.rows()) == 1


def test_a_tools_reply_goes_on_behind_its_call() -> None:
    one = recorder()
    written = '<tool_call>\n{"name": "look", "arguments": {"k": 5}}\n</tool_call>'
    first = take(one, request(user("12"), tools=True), written)
    assert first.finish_reason == "tool_calls"
    (made,) = first.message.tool_calls
    assert (made.name, made.arguments, first.message.content) == ("look", '{"k": 5}', "")
    function = {"name": "look", "arguments": '{"k":5}'}
    history = [
        user("12"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": made.id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": made.id, "content": "Zq"},
    ]
    take(one, request(*history, tools=True), "7")
    row = only(one)
    given = [token for token, own in zip(row.ids, row.mask, strict=True) if not own]
    assert "<tool_response>\nZq\n</tool_response>" in tokenizer_with(None).decode(given)
    assert one.turns[0].tool_calls == ("look",)
    assert one.turns[0].replies == ({"role": "tool", "content": "Zq"},)


@pytest.mark.parametrize(
    "history",
    [
        [user("other")],
        [user("12"), {"role": "assistant", "content": "changed"}, user("5")],
        [user("12")],
    ],
)
def test_a_conversation_that_does_not_go_on_is_a_row_of_its_own(
    history: list[dict[str, Any]],
) -> None:
    one = recorder()
    take(one, request(user("12")), "3")
    take(one, request(*history), "4")
    last, first = one.rows()
    assert tuple(first.ids) == (*encode("3"), END)
    assert tuple(last.ids) == (*encode("4"), END)
    assert all(last.mask)


def test_a_second_way_on_from_a_turn_copies_its_tokens_masked() -> None:
    one = recorder()
    first = take(one, request(user("12")), "3")
    take(one, request(user("12"), reply(first), user("5")), "6")
    take(one, request(user("12"), reply(first), user("7")), "8")
    last, other = one.rows()
    assert last.prompt_ids == other.prompt_ids
    assert last.ids[:2] == other.ids[:2] == [*encode("3"), END]
    assert (last.mask[:2], other.mask[:2]) == ([0, 0], [1, 1])
    assert last.mask[-2:] == [1, 1]


def test_two_calls_at_once_from_one_turn_are_two_rows() -> None:
    one = recorder()
    first = take(one, request(user("12")), "3")
    calls = [one.open(request(user("12"), reply(first), user(each))) for each in "57"]
    for call in calls:
        one.finish(call, sampled(call, "6"))
    assert len(one.rows()) == 2
    assert sorted(sum(row.mask) for row in one.rows()) == [2, 4]


def test_other_tools_begin_a_conversation() -> None:
    one = recorder()
    first = take(one, request(user("12")), "3")
    take(one, request(user("12"), reply(first), user("5"), tools=True), "6")
    assert len(one.rows()) == 2


def test_token_calls_go_on_where_their_tokens_do() -> None:
    one = recorder()
    prompt = encode("12+34=")
    take(one, TokenRequest(token_ids=prompt), "46")
    so_far = (*prompt, *encode("46"), END)
    take(one, TokenRequest(token_ids=(*so_far, *encode("no"))), "7")
    row = only(one)
    assert row.prompt_ids == prompt
    assert tuple(row.ids) == (*encode("46"), END, *encode("no"), *encode("7"), END)
    assert row.mask == [1] * (len(encode("46")) + 1) + [0] * len(encode("no")) + [1, 1]


def test_what_is_drawn_does_not_depend_on_the_order_of_calls() -> None:
    orders = []
    for words in ("ab", "ba"):
        one = recorder(place=3)
        orders.append({word: one.open(request(user(word))).index for word in words})
    assert orders[0] == orders[1]
    again = recorder(place=3)
    twice = [again.open(request(user("a"))).index for _ in range(2)]
    assert twice[0] == orders[0]["a"] != twice[1]
    assert recorder(place=4).open(request(user("a"))).index != twice[0]


def test_limits_of_turns_and_tokens_are_errors_that_say_so() -> None:
    one = recorder(max_turns=1)
    take(one, request(user("12")), "3")
    with pytest.raises(ApiError, match=r"env\.max_turns"):
        one.open(request(user("12")))
    assert one.finish_reason == "turns"
    full = recorder(max_row_tokens=20)
    first = take(full, request(user("12")), "1 2 3 4 5 6 7")
    with pytest.raises(ApiError) as refused:
        full.open(request(user("12"), reply(first), user("1 2 3 4 5 6 7 8")))
    assert refused.value.code == "context_length_exceeded"
    assert full.finish_reason == "length"
    with pytest.raises(ApiError, match=r"data\.max_prompt_tokens"):
        recorder(max_prompt_tokens=3).open(request(user("1 2 3 4 5")))


def test_a_turn_is_as_long_as_the_run_and_the_agent_allow() -> None:
    assert recorder().open(request(user("1"))).max_tokens == 50
    assert recorder().open(request(user("1"), max_tokens=7)).max_tokens == 7
    assert recorder(max_row_tokens=5).open(request(user("1"), max_tokens=7)).max_tokens == 5


def test_rows_of_a_group_get_the_prompt_that_they_share() -> None:
    one = recorder()
    take(one, request(user("12 34")), "5")
    take(one, request(user("12 56")), "7")
    rows = one.rows()
    shared = num_shared_tokens(rows)
    assert one.last is not None
    done = with_tokens(one.last, rows, num_shared=shared)
    (other,) = done.more
    assert 0 < shared < len(rows[0].prompt_ids)
    for rollout, row in zip((done, other), rows, strict=True):
        assert rollout.prompt.token_ids == row.prompt_ids[:shared]
        assert (*rollout.prompt.token_ids, *rollout.token_ids) == (*row.prompt_ids, *row.ids)
        assert sum(rollout.mask or ()) == 2
    assert done.num_tokens == 4


def test_token_ids_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ApiError, match="token_ids"):
        recorder().open(TokenRequest(token_ids=(5, 10**9)))
