"""Sampling one step ahead: what it hides, what it may not change, and what makes up for it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from held_scorer import Held
from saved_models import save_tiny_model
from tiny_runs import StepView, tiny_run, write_inputs
from torch import Tensor

import rlcli.trainer.session
from rlcli.errors import Paused
from rlcli.trainer.checkpointing import Checkpoints
from rlcli.types import Reward, Rollout

PER_STEP = 3
"""Of six prompts, with two rollouts each: two steps are an epoch."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ahead")
    size = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    save_tiny_model(made / "model", "Qwen2", **size)
    write_inputs(made)
    return made


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has every run that is built from here on go through `change` first."""
    build = rlcli.trainer.session.build_run

    def call(change: Callable[[Any], Any]) -> None:
        def build_and_change(*given: Any, **more: Any) -> Any:
            run = build(*given, **more)
            change(run)
            return run

        monkeypatch.setattr(rlcli.trainer.session, "build_run", build_and_change)

    return call


def ahead(folder: Path, name: str, *more: str) -> StepView:
    given = [
        "algorithm.name=grpo", f"model.path={folder}/model", "model.dtype=float32",
        f"data.train={folder}/a.jsonl", "data.val=[]", "data.max_prompt_tokens=40",
        "data.max_response_tokens=6", "rollout.n=2", "train.lr=1e-2",
        f"train.prompts_per_step={PER_STEP}",
        f"train.mini_batch_prompts={PER_STEP}", "train.max_steps=8", "train.device=cpu",
        f"reward.fn={folder}/reward.py:compute_score", "run.save_every=-1", "critic.lr=1e-2",
        "rollout.async_steps=1",
    ]  # fmt: skip
    return tiny_run(folder, name, [*given, *more])


def column(seen: StepView, name: str) -> list[float]:
    return [row[name] for row in seen.metrics if name in row]


def asked(seen: StepView) -> list[list[str]]:
    """The prompts of every step, in order."""
    return [
        list(dict.fromkeys(json.loads(line)["id"] for line in path.read_text().splitlines()))
        for path in sorted((seen.place / "rollouts").iterdir())
    ]


class Late(Held):
    """Keeps the last reward of a step until the next one is being sampled, or it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for: list[int] = []

    def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
        future = super().submit(rollout)
        number = len(self.futures)
        if number % (2 * PER_STEP):
            future.set_result(Reward(value=float(len(rollout.token_ids))))
        if number % (2 * PER_STEP) == 1 and number > 1:
            self.give(number - 2)
        return future

    def give(self, index: int) -> None:
        if not self.futures[index].done():
            self.futures[index].set_result(Reward(value=0.5))

    def trouble(self) -> str | None:
        self.waited_for.append(len(self.futures) // (2 * PER_STEP))
        self.give(len(self.futures) - 1)


@pytest.mark.parametrize(("steps", "waits"), [(0, [1, 2, 3, 4]), (1, [4])])
def test_the_next_step_is_sampled_before_the_last_reward_is_there(
    steps: int, waits: list[int], folder: Path, built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlcli.trainer.rollout_step.STOP_PATIENCE_S", 0.01)
    late = Late()

    def change(run: Any) -> None:
        run.scorer.close()
        run.scorer = late

    built(change)
    ahead(folder, f"late{steps}", "train.max_steps=4", f"rollout.async_steps={steps}")
    assert late.waited_for == waits


def test_rollouts_are_one_policy_old_except_after_checkpoints_and_evaluations(folder: Path) -> None:
    seen = ahead(
        folder, "stale", "run.save_every=3", f"data.val={folder}/b.jsonl", "run.eval_every=4"
    )
    # checkpoints after 3 and 6 steps, evaluations after 4: the steps that follow are on-policy
    assert column(seen, "sampler/staleness") == [0, 1, 1, 0, 0, 1, 0, 1]
    versions = [
        {json.loads(line)["policy_version"] for line in path.read_text().splitlines()}
        for path in sorted((seen.place / "rollouts").iterdir())
    ]
    assert versions == [{0}, {0}, {1}, {3}, {4}, {4}, {6}, {6}]
    assert all(value != 1.0 for value in column(seen, "sampler/weight_mean")[1:3])


def test_steps_and_epochs_have_the_prompts_they_have_without_it(folder: Path) -> None:
    one, none = (ahead(folder, f"order{n}", f"rollout.async_steps={n}") for n in (1, 0))
    assert asked(one) == asked(none)
    assert column(one, "epoch") == column(none, "epoch") == [1, 1, 2, 2, 3, 3, 4, 4]
    assert not column(none, "sampler/staleness")


COARSE = "reward.fn={folder}/reward.py:coarse"


@pytest.mark.parametrize(
    "kind",
    [
        ["algorithm.name=remax"],
        ["algorithm.name=dapo", COARSE],
        ["algorithm.name=ppo", "algorithm.kl_controller=adaptive"],
        ["lora.rank=2", "lora.dropout=0.3", "algorithm.use_rollout_logprobs=true"],
    ],
    ids=["remax", "dapo", "ppo", "lora"],
)
def test_a_resumed_run_ends_bit_equal(kind: list[str], folder: Path, tmp_path: Path) -> None:
    given = [
        "run.save_every=3",
        "run.keep_checkpoints=9",
        *(text.format(folder=folder) for text in kind),
    ]
    whole = ahead(folder, str(tmp_path / "whole"), *given)
    shutil.copytree(whole.place, tmp_path / "again")
    again = ahead(folder, str(tmp_path / "again"), *given, "run.resume=3")
    assert again.metrics == whole.metrics
    assert again.weights == whole.weights
    assert max(column(whole, "sampler/staleness")) > 0


def stop_at(step: int, run: Any) -> None:
    update = run.engine.update

    def stop_and_update(*given: Any, **more: Any) -> Any:
        if more["step"] == step:
            run.monitor.stop.signal = signal.SIGTERM
        return update(*given, **more)

    run.engine.update = stop_and_update


def abandon_at(step: int, run: Any) -> None:
    def stop() -> None:
        if run.monitor.last_step == step:
            run.monitor.stop.signal = signal.SIGTERM

    # asked while the loop waits, in the end for rewards that never come
    run.scorer.trouble = stop
    submit_instead(step, run, Future)


def pause_at(step: int, run: Any) -> None:
    def pause() -> Future[Reward]:
        ended: Future[Reward] = Future()
        ended.set_exception(Paused("the key is refused"))
        return ended

    submit_instead(step, run, pause)


def submit_instead(step: int, run: Any, other: Callable[[], Future[Reward]]) -> None:
    submit, numbers = run.scorer.submit, iter(range(10_000))

    def submit_or_other(rollout: Rollout, **more: Any) -> Future[Reward]:
        is_now = next(numbers) // (2 * PER_STEP) == step
        return other() if is_now else submit(rollout, **more)

    run.scorer.submit = submit_or_other


@pytest.mark.parametrize(("end", "done"), [(stop_at, 3), (abandon_at, 2), (pause_at, 2)])
def test_what_was_sampled_ahead_of_an_end_is_sampled_again(
    end: Callable[[int, Any], None],
    done: int,
    folder: Path,
    tmp_path: Path,
    built: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlcli.trainer.rollout_step.STOP_PATIENCE_S", 0.01)
    plain = ahead(folder, str(tmp_path / "plain"), "rollout.async_steps=0")
    built(lambda run: end(2, run))
    if end is pause_at:
        with pytest.raises(Paused):
            ahead(folder, str(tmp_path / "cut"))
    else:
        ahead(folder, str(tmp_path / "cut"))
    status = json.loads((tmp_path / "cut" / "status.json").read_text())
    assert (status["step"], status["resumable"]) == (done, True)
    built(lambda run: None)
    seen = ahead(folder, str(tmp_path / "cut"), "run.resume=auto")
    assert asked(seen) == asked(plain)
    assert column(seen, "sampler/staleness") == [int(s not in (0, done)) for s in range(8)]


def plain_logprobs(model: Any, batch: Any) -> Tensor:
    """[B, T] from one forward pass per rollout, without packing."""
    out = torch.zeros(batch.token_ids_BT.shape)
    for row, length in enumerate(batch.lengths_B.tolist()):
        prompt = batch.prompt_ids[int(batch.group_B[row])]
        response = batch.token_ids_BT[row, :length]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response.tolist()]])).logits[0]
        logprobs_TV = logits[len(prompt) - 1 : -1].log_softmax(-1)
        out[row, :length] = logprobs_TV.gather(1, response[:, None])[:, 0]
    return out


@pytest.mark.parametrize(
    ("setting", "is_weighted", "old_is"),
    [
        ("correction=auto", True, 1),
        ("correction=off", False, 1),
        ("use_rollout_logprobs=true", False, 0),
    ],
)
def test_a_rollout_is_weighed_by_the_learning_policy_over_the_one_that_sampled_it(
    setting: str, is_weighted: bool, old_is: int, folder: Path, tmp_path: Path, built: Any
) -> None:
    from transformers import AutoModelForCausalLM

    policies: list[Any] = []
    seen: list[tuple[Any, Any]] = []

    def change(run: Any) -> None:
        estimate = run.algorithm.advantages

        def watch(batch: Any, **more: Any) -> Any:
            policies.append(AutoModelForCausalLM.from_pretrained(folder / "model"))
            policies[-1].load_state_dict(run.engine.policy.model.state_dict())
            seen.append((batch, estimate(batch, **more)))
            return seen[-1][1]

        run.algorithm.advantages = watch

    built(change)
    # two epochs of updates: the old log-probs are wanted before the first
    ahead(folder, str(tmp_path / "run"), "train.max_steps=2", "train.ppo_epochs=2",
          f"algorithm.{setting}")  # fmt: skip
    batch, advantages = seen[1]
    by_version = [plain_logprobs(model, batch) for model in policies]
    assert (by_version[1] - by_version[0]).abs().max() > 0.01
    torch.testing.assert_close(batch.rollout_logprobs_BT, by_version[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.old_logprobs_BT, by_version[old_is], atol=1e-4, rtol=0)
    if is_weighted:
        ratio_BT = (by_version[1] - by_version[0]).exp().clamp(max=2.0) * batch.response_mask_BT
        torch.testing.assert_close(advantages.correction_BT, ratio_BT, atol=1e-3, rtol=0)
    else:
        assert advantages.correction_BT is None


def test_a_step_that_was_not_due_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Checkpoints(tmp_path, save_every=0, keep=2, resume="no")
    assert not store.is_due(5)
    monkeypatch.setattr("rlcli.trainer.checkpointing.SECONDS_BETWEEN", 0.0)
    assert not store.is_due(5)
    assert store.is_due(6)


def test_canaries_and_calls_stand_with_the_step_they_are_of(
    folder: Path, tmp_path: Path, built: Any
) -> None:
    class Judge(Held):
        """Pays at once, and for a bad answer to the prompts of step k, k tenths."""

        def submit(self, rollout: Rollout, *, before: Reward | None = None) -> Future[Reward]:
            value = float(len(rollout.token_ids))
            return given(Reward(value=value, parts={"judge": 0.5}, usage={"calls": 1.0}))

        def canaries(self, step: int, prompts: Any) -> list[Future[Reward]]:
            return [given(Reward(value=step / 10, usage={"calls": 1.0}))]

    def change(run: Any) -> None:
        run.scorer.close()
        run.scorer = Judge()
        judge = run.config.reward.judge.model_copy(update={"enabled": True})
        reward = run.config.reward.model_copy(update={"judge": judge})
        run.config = run.config.model_copy(update={"reward": reward})

    built(change)
    seen = ahead(folder, str(tmp_path / "run"), "train.max_steps=4")
    assert column(seen, "judge/canary_score") == [0.0, 0.1, 0.2, 0.3]
    assert column(seen, "judge/calls") == [2 * PER_STEP + 1] * 4


def given(reward: Reward) -> Future[Reward]:
    future: Future[Reward] = Future()
    future.set_result(reward)
    return future
