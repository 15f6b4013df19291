"""Episodes of random turns through a dialogue: odd tokens, cut turns, calls good and bad."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlcli.envs.calls import ToolCall
from rlcli.envs.dialogue import Dialogue
from rlcli.envs.episode import EnvFacts, EnvReply
from rlcli.envs.episode_row import EpisodeLimits, EpisodeParts, EpisodeRow
from rlcli.types import Message, Prompt, Rollout

END = 3


class RandomTool:
    """Stands in for a pool's episode: each call gets a random reply."""

    def __init__(self, draw: random.Random) -> None:
        self.draw, self.seconds = draw, 0.0

    def call(self, calls: Sequence[ToolCall]) -> EnvReply:
        texts = ["7", "", "<|im_end|>", "a" * 300, "\n\n", "é☃\ud800", "[look(k=1)]", "</think>"]
        messages: list[Message] = [
            {"role": "tool", "name": call.name, "content": self.draw.choice(texts)}
            for call in calls
        ]
        return EnvReply(messages=messages)

    def close(self) -> None:
        pass


def written_calls(form: str, names: Sequence[str], draw: random.Random) -> str:
    """Calls as a model writes them, one in three of them broken."""
    count = draw.choice([1, 1, 1, 2, 3]) if form != "llama" else 1
    blocks = []
    for _ in range(count):
        name = draw.choice([*names, "lok", ""])
        arguments = draw.choice([{"k": draw.randrange(99)}, {"k": "x"}, {}, {"text": "é\n"}])
        key = "parameters" if form == "llama" else "arguments"
        blocks.append(json.dumps({"name": name, key: arguments}))
    text = {
        "hermes": "".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks),
        "llama": blocks[0],
        "mistral": f"[TOOL_CALLS][{', '.join(blocks)}]",
        "xml": "<tool_call>\n<function=look>\n<parameter=k>\n5\n</parameter>\n</function>\n"
        "</tool_call>",
    }[form]
    if draw.random() < 1 / 3:
        cut = draw.randrange(len(text))
        text = text[:cut] + draw.choice(["", "}", "<tool_call>", "\x00"]) + text[cut + 1 :]
    return text


def random_turn(
    talk: Dialogue, tokenizer: Any, names: Sequence[str], draw: random.Random
) -> Rollout:
    """A turn as a sampler hands it out."""
    ids: list[int] = []
    for _ in range(draw.randrange(1, 4)):
        kind = draw.random()
        if kind < 0.3:  # not what the tokenizer would write
            ids += [draw.randrange(4, len(tokenizer)) for _ in range(draw.randrange(12))]
        elif kind < 0.4:
            ids += tokenizer("<think>" + written_calls(talk.tool_format, names, draw))["input_ids"]
        else:
            ids += tokenizer(written_calls(talk.tool_format, names, draw))["input_ids"]
    ids = [token for token in ids if token != END] or [40]
    is_cut = draw.random() < 0.3
    ids = ids[: draw.randrange(1, len(ids) + 1)] if is_cut else [*ids, END]
    return Rollout(
        prompt=Prompt(id="", messages=(), token_ids=()),
        text=tokenizer.decode(ids),
        token_ids=tuple(ids),
        logprobs=tuple(-draw.random() - 0.01 for _ in ids),
        finish_reason="length" if is_cut else "stop",
        policy_version=0,
    )


def check_episode(
    talk: Dialogue, tokenizer: Any, schemas: Sequence[Mapping[str, Any]], number: int
) -> int:
    """Play one; what is trained on is what was sampled. Returns its number of turns."""
    draw = random.Random(number)
    names = [schema["function"]["name"] for schema in schemas]
    facts = EnvFacts(
        form="functions",
        schemas=schemas,
        has_tasks=False,
        num_tasks=None,
        scores=False,
        floor=0.0,
        knows_answers=False,
    )
    parts = EpisodeParts(
        pool=None,  # type: ignore[arg-type]
        facts=facts,
        dialogue=talk,
        limits=EpisodeLimits(max_turns=draw.randrange(1, 7), max_turn_tokens=None),
    )
    prompt = Prompt(id="p", messages=(), token_ids=tuple(range(40, 40 + draw.randrange(1, 9))))
    limit = draw.randrange(400, 3000)
    row = EpisodeRow(parts, prompt, max_tokens=limit, number=number)
    row._episode = RandomTool(draw)  # type: ignore[assignment]
    with ThreadPoolExecutor(1) as threads:
        row.begin(threads)
    expected: list[tuple[int, float, int]] = []
    turns = 0
    while True:
        turn = random_turn(talk, tokenizer, names, draw)
        turns += 1
        expected += [(t, lp, 1) for t, lp in zip(turn.token_ids, turn.logprobs, strict=True)]
        after = row.go_on(turn)
        if after is None:
            break
        assert after.max_tokens == limit - len(expected) - len(after.token_ids) > 0
        if turn.finish_reason == "length":
            assert after.token_ids[0] == END
        expected += [(token, 0.0, 0) for token in after.token_ids]
    rollout = row.rollout(turn)
    assert rollout.mask is not None
    found = list(zip(rollout.token_ids, rollout.logprobs, rollout.mask, strict=True))
    assert found == expected
    assert sum(one.num_tokens for one in rollout.turns) == sum(rollout.mask)
    return turns
