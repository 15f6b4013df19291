"""Rows of several turns, with keys and values kept between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from native_parts import load, prompts, sampler
from saved_models import save_tiny_model
from scripted_turns import ScriptedTurns

from rlcli.models import resumed_layout
from rlcli.rollout.base import SamplingParams, seed_of_turn
from rlcli.types import Rollout

PARAMS = SamplingParams(n=3, max_tokens=12)
ENDS = (2, *range(3, 60, 3))


def play(lm: Any, tokenizer: Any, **changes: Any) -> tuple[ScriptedTurns, list[Rollout]]:
    script = ScriptedTurns(most=4, reply_tokens=20, turn_tokens=PARAMS.max_tokens)
    native = sampler(lm, tokenizer, eos_token_ids=ENDS, **changes)
    return script, native.generate(prompts(8), PARAMS, seed=5, go_on=script.go_on)


def check_as_if_read_again(lm: Any, tokenizer: Any, script: ScriptedTurns) -> None:
    """Each later turn is what a call on the whole row samples."""
    native = sampler(lm, tokenizer, eos_token_ids=ENDS)
    for turn in (1, 2, 3):
        rows = [index for index, turns in script.turns.items() if len(turns) > turn]
        grown = [
            replace(one, token_ids=(*one.token_ids, *script.tokens_before(index, turn)))
            for index in rows
            for one in (prompts(8)[index // PARAMS.n],)
        ]
        again = native.generate(
            grown, replace(PARAMS, n=1), seed=seed_of_turn(5, turn), prompt_indices=rows
        )
        for index, read in zip(rows, again, strict=True):
            kept = script.turns[index][turn]
            assert read.token_ids[: len(kept.token_ids)] == kept.token_ids
            gap = torch.tensor(kept.logprobs) - torch.tensor(read.logprobs[: len(kept.logprobs)])
            assert float(gap.abs().max()) < 1e-5
            assert kept.finish_reason == ("stop" if kept.token_ids[-1] in ENDS else "length")


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {}),
    "windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_turns_behind_kept_keys_and_values_are_those_of_rows_read_again(
    tmp_path: Path, name: str, packed: bool
) -> None:
    kind, changes = MODELS[name]
    lm, tokenizer = load(save_tiny_model(tmp_path / name, kind, **changes), packed=packed)
    script, last = play(lm, tokenizer)
    assert {len(turns) for turns in script.turns.values()} == {1, 2, 3, 4}
    assert last == [script.turns[index][-1] for index in range(24)]
    check_as_if_read_again(lm, tokenizer, script)


def test_long_replies_are_read_in_parts(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumed_layout, "MAX_PASS_TOKENS", 30)
    lm, tokenizer = load(tiny_model)
    script, _ = play(lm, tokenizer)
    check_as_if_read_again(lm, tokenizer, script)


def test_more_rows_than_fit_beside_each_other(tiny_model: Path) -> None:
    lm, tokenizer = load(tiny_model)
    whole, _ = play(lm, tokenizer)
    parts, _ = play(lm, tokenizer, max_num_seqs=7)
    assert [[turn.token_ids for turn in turns] for turns in parts.turns.values()] == [
        [turn.token_ids for turn in whole.turns[index]] for index in parts.turns
    ]


def test_rows_are_handed_out_with_their_last_turn(tiny_model: Path) -> None:
    lm, tokenizer = load(tiny_model)
    script = ScriptedTurns(most=3, reply_tokens=5, turn_tokens=12)
    seen: dict[int, Rollout] = {}
    native = sampler(lm, tokenizer, eos_token_ids=ENDS)
    out = native.generate(
        prompts(4),
        PARAMS,
        seed=1,
        go_on=script.go_on,
        on_finish=lambda index, one: seen.update({index: one}),
    )
    assert [seen[index] for index in range(12)] == out


def test_a_lower_limit_of_a_row_keeps_the_tokens_before_it(tmp_path: Path) -> None:
    lm, tokenizer = load(save_tiny_model(tmp_path / "model", "Qwen2"))
    native = sampler(lm, tokenizer, eos_token_ids=ENDS)
    one, limits = replace(PARAMS, n=1), [1, 12, 5, 3]
    whole = native.generate(prompts(4), one, seed=5)
    limited = native.generate(prompts(4), one, seed=5, limits=limits)
    for full, part, limit in zip(whole, limited, limits, strict=True):
        assert part.token_ids == full.token_ids[:limit]
        is_cut = len(full.token_ids) > limit or full.finish_reason == "length"
        assert part.finish_reason == ("length" if is_cut else "stop")
    lower = native.generate(prompts(4)[:1], replace(one, max_tokens=3), seed=5)
    assert lower[0].token_ids == whole[0].token_ids[:3]
