"""Any number of ranks draws the samples that one rank draws; each rank draws its share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import tiny_run, write_inputs

import rlcli.trainer.session
from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.distributed.collectives import Ranks
from rlcli.models.causal_lm import load_causal_lm, load_tokenizer
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.native import NativeSampler
from rlcli.trainer.rollout_step import sample
from rlcli.types import Prompt, Rollout

CPU = torch.device("cpu")
PARAMS = SamplingParams(n=3, max_tokens=12)
PROMPTS = [
    Prompt(id=str(i), messages=(), token_ids=tuple(range(3, 4 + i * 5 % 17)), ground_truth=i)
    for i in range(7)
]


@pytest.fixture(scope="module")
def sampler(tiny_model: Path) -> NativeSampler:
    lm = load_causal_lm(str(tiny_model), dtype=torch.float32, device=CPU)
    return NativeSampler(
        lm,
        load_tokenizer(str(tiny_model)),
        eos_token_ids=(2, 7, 9, 11),
        pad_token_id=0,
        max_num_seqs=6,
        shares_weights=True,
    )


def shares(sampler: NativeSampler, size: int, **changes: Any) -> list[list[Rollout]]:
    """What each rank keeps, and has on its way to the scorer the moment it ends."""
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    found = []
    for rank in range(size):
        config = with_values(Config(), {"train.mini_batch_prompts": 4, **settings})
        run: Any = SimpleNamespace(config=config, ranks=Ranks(rank, size), sampler=sampler)
        ended: dict[int, Rollout] = {}
        own = sample(run, PROMPTS, PARAMS, seed=4, on_finish=ended.__setitem__)
        assert [ended[i] for i in range(len(own))] == own
        assert len(ended) == len(own)
        found.append(own)
    return found


def tokens(rollouts: list[Rollout]) -> list[tuple[str, tuple[int, ...]]]:
    return [(rollout.prompt.id, rollout.token_ids) for rollout in rollouts]


@pytest.mark.parametrize("size", [2, 3, 9])
def test_ranks_sample_what_one_would(sampler: NativeSampler, size: int) -> None:
    """More ranks than prompts too; a group is whole on one rank."""
    expected = tokens(sampler.generate(PROMPTS, PARAMS, seed=4))
    found = shares(sampler, size)
    for own in found:
        ids = {rollout.prompt.id for rollout in own}
        assert tokens(own) == [row for row in expected if row[0] in ids]
    assert sum(map(len, found)) == len(expected)
    assert max(map(len, found)) - min(map(len, found)) <= PARAMS.n


def test_ranks_that_hold_one_model_together_keep_a_share_each(
    sampler: NativeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    generate = sampler.generate

    def noted(prompts: Any, *given: Any, **more: Any) -> list[Rollout]:
        asked.append([prompt.id for prompt in prompts])
        return generate(prompts, *given, **more)

    monkeypatch.setattr(sampler, "generate", noted)
    wide = {"rollout__engine": "vllm", "rollout__tensor_parallel": 2}
    found, expected = shares(sampler, 4, **wide), shares(sampler, 4)
    assert list(map(tokens, found)) == list(map(tokens, expected))
    assert asked[0] == asked[1] != asked[2] == asked[3]
    assert sorted(asked[0] + asked[2]) == sorted(prompt.id for prompt in PROMPTS)


def test_what_is_drawn_depends_on_the_place_and_not_on_the_neighbours(
    sampler: NativeSampler,
) -> None:
    whole = sampler.generate(PROMPTS, PARAMS, seed=1)
    some = sampler.generate([PROMPTS[5], PROMPTS[2]], PARAMS, seed=1, prompt_indices=[5, 2])
    assert [r.token_ids for r in some] == [r.token_ids for i in (5, 2) for r in whole[3 * i :][:3]]
    other = sampler.generate([PROMPTS[5]], PARAMS, seed=1, prompt_indices=[6])
    assert [r.token_ids for r in other] != [r.token_ids for r in some[:3]]


def test_others_see_what_a_rank_does(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, told = rlcli.trainer.session.build_run, list[str]()

    class Listening(Ranks):
        @contextmanager
        def doing(self, name: str) -> Iterator[None]:
            told.append(name)
            yield

    def listened(*given: Any, **more: Any) -> Any:
        run = build(*given, **more)
        run.ranks = run.engine.ranks = Listening()
        return run

    monkeypatch.setattr(rlcli.trainer.session, "build_run", listened)
    write_inputs(tmp_path)
    words = [
        "algorithm.name=grpo", f"model.path={tiny_model}", "model.dtype=float32",
        f"data.train={tmp_path}/a.jsonl", f"data.val={tmp_path}/b.jsonl", "run.eval_every=0",
        "data.max_prompt_tokens=40", "data.max_response_tokens=6", "rollout.n=2",
        "train.prompts_per_step=3", "train.mini_batch_prompts=3", "train.max_steps=1",
        f"reward.fn={tmp_path}/reward.py:compute_score", "train.device=cpu",
    ]  # fmt: skip
    tiny_run(tmp_path, "run", words)
    step = ["reward", "generate", "annotate", "update"]
    evaluation = ["evaluation", "generate"]
    end = ["saving", "saving", "state", "save_model"]
    assert told == [*evaluation, *step, *evaluation, *end]
