"""Whole runs on several ranks, each with its share of the prompts: they are the run of one."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import Act, Call, JudgeServer
from launched import check_ranks_end_well, run_ranks
from safetensors.torch import load_file
from saved_models import save_tiny_model
from tiny_runs import UNSTABLE, tiny_run, write_inputs

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
MIXED = ["reward.composite=true", "reward.weights={judge: 0.5, rule_score: 0.5}"]
REWARD = """
import json, os, pathlib, time
place = pathlib.Path(__file__).with_name("scored_by")

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    with place.open("a") as file:
        file.write(json.dumps([os.getppid(), ground_truth, solution_str]) + "\\n")
    return (sum(map(ord, solution_str)) % 7 + len(ground_truth)) / 11

def tied(data_source, solution_str, ground_truth, extra_info=None):
    return float(sum(map(ord, solution_str)) % 3 == 0)

def parts(data_source, solution_str, ground_truth, extra_info=None):
    a, b = sum(map(ord, solution_str)) % 5, len(solution_str) % 3
    return {"score": a + b, "a": a, "b": b}
"""
BY_RANK = ("batch/samples", "batch/tokens")
"""Of the first micro-batch of rank 0."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("loop")
    size = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    save_tiny_model(made / "model", "Qwen2", **size)
    write_inputs(made)
    (made / "reward.py").write_text(REWARD)
    return made


def settings(folder: Path, *more: str) -> list[str]:
    return [
        "algorithm.name=grpo", f"model.path={folder}/model", "model.dtype=float32",
        f"data.train={folder}/a.jsonl", "data.max_prompt_tokens=40",
        f"data.val={folder}/b.jsonl", "run.eval_every=0", "rollout.val_n=2",
        "data.max_response_tokens=6", "rollout.n=3", "train.lr=1e-3",
        "train.prompts_per_step=3", "train.mini_batch_prompts=2", f"train.max_steps={STEPS}",
        "train.device=cpu", f"reward.fn={folder}/reward.py:compute_score", "run.save_every=2",
        "run.keep_checkpoints=9", "critic.lr=1e-3", *more,
    ]  # fmt: skip


def cases_of(folder: Path) -> dict[str, list[str]]:
    tied, parts = (f"reward.fn={folder}/reward.py:{name}" for name in ("tied", "parts"))
    found = {
        "grpo": ["algorithm.kl_loss=true"],
        "dynamic": ["algorithm.name=dapo", tied, "rollout.n=2"],
        "remax": ["algorithm.name=remax"],
        "ppo": ["algorithm.name=ppo", "algorithm.kl_in_reward=true"],
        "async": ["rollout.async_steps=1", "run.save_every=3", "algorithm.correction=token"],
        "async dynamic": ["algorithm.name=dapo", tied, "rollout.async_steps=1", "rollout.n=2"],
        "gdpo": ["algorithm.advantage=gdpo", parts, "reward.weights={a: 1.0, b: 0.5}"],
        "clip_cov": ["algorithm.loss=clip_cov", "train.ppo_epochs=2"],
    }
    return {name: settings(folder, *more) for name, more in found.items()}


ENGINES = {
    "fsdp": (["train.engine=fsdp"], ["algorithm.kl_loss=true"]),
    "zero1": (["train.engine=deepspeed", "train.zero_stage=1"], []),
    "zero3": (["train.engine=deepspeed", "train.zero_stage=3"], ["algorithm.name=ppo"]),
}
"""Settings of an engine, and of what it trains."""


def command_of(folder: Path, cases: dict[str, list[str]]) -> list[object]:
    return [ROOT / "tests" / "support" / "loop_ranks.py", folder, json.dumps(cases)]


def train_on(size: int, folder: Path, cases: dict[str, list[str]], **env: str) -> None:
    check_ranks_end_well(size, command_of(folder, cases), **env)


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    unstable = (*UNSTABLE, *BY_RANK)
    return [
        {k: v for k, v in row.items() if not (k.startswith(unstable) or k.endswith("_s"))}
        for row in rows
    ]


def rollouts(run: Path) -> list[str]:
    return [path.read_text() for path in sorted((run / "rollouts").iterdir())]


def weights(run: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step_{step}/policy.safetensors")


def check_same_run(found: Path, alone: Path) -> None:
    """Prompts, texts, rewards and metrics, and the weights of the final model."""
    one, other = load_file(alone / MODEL), load_file(found / MODEL)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert rollouts(found) == rollouts(alone)
    for row, expected in zip(metrics(found), metrics(alone), strict=True):
        assert row == pytest.approx(expected, abs=2e-5, rel=1e-3)


MODEL = "checkpoints/final/model.safetensors"


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Path]:
    """The runs of one process."""
    cases = cases_of(folder)
    return {name: tiny_run(folder, f"1 {name}", words).place for name, words in cases.items()}


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (2, [*cases_of(Path())]),
        pytest.param(4, ["grpo", "dynamic", "async", "ppo"], marks=pytest.mark.nightly),
    ],
)
def test_any_number_of_ranks_makes_the_run_of_one(
    size: int, names: list[str], folder: Path, alone: dict[str, Path]
) -> None:
    """With three prompts a step, one of four ranks has none."""
    cases = cases_of(folder)
    train_on(size, folder, {f"{size} {name}": cases[name] for name in names})
    for name in names:
        check_same_run(folder / f"{size} {name}", alone[name])


@pytest.mark.nightly
def test_every_engine_makes_the_run_of_torch_alone(folder: Path) -> None:
    """And goes on from what any number of ranks of another engine saved."""
    names = ["fsdp"] if find_spec("deepspeed") is None else [*ENGINES]
    alone = {
        name: tiny_run(folder, f"1 like {name}", settings(folder, *words)).place
        for name, (_, words) in ENGINES.items()
    }
    cases = {f"2 {n}": settings(folder, *ENGINES[n][0], *ENGINES[n][1]) for n in names}
    for name in names:
        shutil.copytree(alone[name], folder / f"2 {name} resumed")
        cases[f"2 {name} resumed"] = [*cases[f"2 {name}"], "run.resume=2"]
    train_on(2, folder, cases)
    for name in names:
        check_same_run(folder / f"2 {name}", alone[name])
        check_same_run(folder / f"2 {name} resumed", alone[name])
        words = settings(folder, *ENGINES[name][1], "run.resume=2")
        check_same_run(tiny_run(folder, f"2 {name}", words).place, alone[name])


def test_each_rank_scores_what_it_sampled(folder: Path) -> None:
    (folder / "scored_by").unlink(missing_ok=True)
    train_on(2, folder, {"scored": settings(folder, "data.val=[]", "train.max_steps=1")})
    scored = [json.loads(line) for line in (folder / "scored_by").read_text().splitlines()]
    ranks: dict[str, set[int]] = {}
    for row in map(json.loads, rollouts(folder / "scored")[0].splitlines()):
        answer = [row["ground_truth"], row["response"]]
        ranks.setdefault(row["id"], set()).update(pid for pid, *said in scored if said == answer)
    assert all(len(pids) == 1 for pids in ranks.values()), "a group was scored in two places"
    assert len(set().union(*ranks.values())) == 2


def test_all_ranks_ask_one_judge_with_one_limit(folder: Path) -> None:
    """Its calls, canaries and scores are those of one process, and so is the model."""
    pytest.importorskip("openai", reason="needs openai")
    server = JudgeServer(by_text)
    try:
        words = settings(
            folder, *MIXED, "reward.judge.enabled=true", "reward.judge.provider=openai",
            "reward.judge.model=judge-1", f"reward.judge.base_url={server.url}/v1",
            "reward.judge.concurrency=2", "reward.judge.canary_every=2", "reward.judge.cache=off",
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_API_KEY", "sk-1")
            one = tiny_run(folder, "1 judge", words).place
            asked = sorted(call.response for call in server.calls)
            server.calls.clear()
            train_on(2, folder, {"2 judge": words})
    finally:
        server.close()
    assert server.most_in_flight == 2
    assert sorted(call.response for call in server.calls) == asked
    check_same_run(folder / "2 judge", one)
    assert any("judge/canary_score" in row for row in metrics(one))


def by_text(call: Call) -> Act:
    score = sum(map(ord, call.response)) % 9 + 1
    return Act(text=json.dumps({"reason": "so", "score": score}), latency_s=0.02)


def test_a_judge_that_cannot_be_asked_any_more_pauses_all_ranks(folder: Path) -> None:
    """What it leaves is a checkpoint from which any number of ranks goes on to the same model."""
    pytest.importorskip("openai", reason="needs openai")
    calls_left = [10_000]

    def behave(call: Call) -> Act:
        calls_left[0] -= 1
        is_refused = calls_left[0] < 0
        return Act(status=401, text="", error={"message": "no"}) if is_refused else by_text(call)

    server = JudgeServer(behave)
    words = settings(
        folder, *MIXED, "reward.judge.enabled=true", "reward.judge.provider=openai",
        "reward.judge.model=judge-1", f"reward.judge.base_url={server.url}/v1", "data.val=[]",
        "reward.judge.cache=off",
    )  # fmt: skip
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_API_KEY", "sk-1")
            tiny_run(folder, "1 paused", words)
            calls_left[0] = 25  # the first is the probe, and a step has 9
            ends = run_ranks(2, command_of(folder, {"2 paused": words}))
            assert [code for code, _ in ends] == [75, 0], ends
            calls_left[0] = 10_000
            tiny_run(folder, "2 paused", [*words, "run.resume=auto"])
    finally:
        server.close()
    check_same_run(folder / "2 paused", folder / "1 paused")
