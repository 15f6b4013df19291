"""Turns that go on by a script instead of an environment."""

from __future__ import annotations

import random
from concurrent.futures import Future

from rlcli.rollout.base import NextTurn
from rlcli.types import Rollout


class ScriptedTurns:
    """`go_on` for rows of 1 to `most` turns with random replies, by row and turn alone.

    before: for each row, (tokens of the turn, tokens that followed it), turn by turn.
    """

    def __init__(self, *, most: int, reply_tokens: int, turn_tokens: int) -> None:
        self.most, self.reply_tokens, self.turn_tokens = most, reply_tokens, turn_tokens
        self.turns: dict[int, list[Rollout]] = {}
        self.replies: dict[int, list[tuple[int, ...]]] = {}

    def go_on(self, index: int, turn: Rollout) -> Future[NextTurn | None]:
        turns = self.turns.setdefault(index, [])
        turns.append(turn)
        draw = random.Random(f"{index} {len(turns)}")
        future: Future[NextTurn | None] = Future()
        if len(turns) == 1 + index % self.most:
            future.set_result(None)
            return future
        reply = tuple(draw.randrange(60, 250) for _ in range(draw.randrange(self.reply_tokens)))
        self.replies.setdefault(index, []).append(reply)
        limit = draw.randrange(1, self.turn_tokens + 1)
        future.set_result(NextTurn(token_ids=reply, max_tokens=limit))
        return future

    def tokens_before(self, index: int, turn: int) -> tuple[int, ...]:
        """Everything behind the prompt that a turn of a row follows."""
        pairs = zip(self.turns[index][:turn], self.replies.get(index, ())[:turn], strict=True)
        return tuple(token for one, reply in pairs for token in (*one.token_ids, *reply))
