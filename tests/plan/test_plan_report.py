from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlcli.cli.plan import plan_lines, print_plan
from rlcli.config.resolved import Resolved
from rlcli.errors import UsageError
from rlcli.plan import RunPlan, make_memory_plan, plan_run
from rlcli.plan import disk as disk_module
from rlcli.plan.disk import find_free_gib, plan_disk
from rlcli.plan.judge import num_evaluations, plan_judge
from rlcli.plan.machine import Machine, find_machine
from rlcli.plan.memory import Models
from rlcli.plan.models import find_shape
from rlcli.plan.needs import needs_of
from rlcli.system.hardware import GIB

Settings = Callable[..., Resolved]
QUICKSTART = ("model.path=builtin:quickstart", "data.train=[builtin:sums]", "data.val=[]")
SHAPES = {
    "update": ("grpo", "cpu", ["model.dtype=float32"]),
    "rollout": (
        "grpo",
        "cpu",
        ["rollout.n=64", "rollout.max_num_seqs=2048", "train.tokens_per_micro_batch=2048",
         "model.gradient_checkpointing=true"],
    ),
    "critic": ("ppo", "cuda", ["critic.path=Qwen/Qwen2.5-1.5B"]),
}  # fmt: skip


def made(resolved: Resolved, *, kind: str = "cpu", memory_gib: float = 24.0) -> RunPlan:
    machine = Machine(kind=kind, name=kind, memory_gib=memory_gib)  # type: ignore[arg-type]
    critic = resolved.config.critic.path or resolved.config.model.path
    return make_memory_plan(
        resolved,
        num_prompts=1000,
        shape=find_shape(resolved.config.model.path),
        critic=find_shape(critic) if resolved.config.algorithm.advantage == "gae" else None,
        machine=machine,
    )


@pytest.mark.parametrize("phase", SHAPES)
def test_suggestions_gain_what_they_predict_when_applied(settings: Settings, phase: str) -> None:
    algo, kind, overrides = SHAPES[phase]
    before = made(settings(*overrides, "data.val=[]", algo=algo), kind=kind)
    assert before.largest.name == phase
    assert 1 <= len(before.savings) <= 3
    for relief in before.savings:
        changed = settings(*overrides, "data.val=[]", *relief.change.split(" "), algo=algo)
        after = next(p for p in made(changed, kind=kind).phases if p.name == phase)
        assert after.peak_gib == pytest.approx(relief.peak_gib)
        assert before.largest.peak_gib - after.peak_gib == pytest.approx(relief.gain_gib)
        assert relief.gain_gib > 0


def test_a_suggestion_fits_only_where_every_phase_does(settings: Settings) -> None:
    """0.5B GRPO on 16 GiB: checkpointing lowers the update, and sampling still takes 22 GiB."""
    plan = made(settings("data.val=[]"), kind="cuda", memory_gib=16.0)
    relief = next(r for r in plan.savings if "gradient_checkpointing" in r.change)
    assert relief.peak_gib < 16.0 < relief.largest_gib
    assert (relief.fits, relief.largest) == (False, "rollout")
    assert "rollout still takes 22.25 GiB" in " ".join(" ".join(plan_lines(plan)).split())
    for other in plan.savings:
        after = made(settings("data.val=[]", *other.change.split(" ")), kind="cuda", memory_gib=16)
        assert other.fits == after.fits
        assert other.largest_gib == pytest.approx(after.largest.peak_gib)


def test_what_fits_together_fits_when_typed_and_nothing_of_it_is_needless(
    settings: Settings,
) -> None:
    plan = made(settings("data.val=[]"), kind="cuda", memory_gib=16.0)
    assert plan.together is not None
    assert plan.together.fits
    words = plan.together.words()
    after = made(settings("data.val=[]", *words), kind="cuda", memory_gib=16.0)
    assert after.fits
    assert after.largest.peak_gib == pytest.approx(plan.together.plan.largest.peak_gib)
    for word in words:
        fewer = [other for other in words if other != word]
        assert not made(settings("data.val=[]", *fewer), kind="cuda", memory_gib=16.0).fits
    assert any(line.startswith("fits at 15.57 GiB with") for line in plan_lines(plan))


def test_where_nothing_is_enough_the_least_is_said(settings: Settings) -> None:
    plan = made(settings("data.val=[]"), kind="cuda", memory_gib=1.0)
    assert plan.together is not None
    assert not plan.together.fits
    assert any(line.startswith("does not fit: at least") for line in plan_lines(plan))


def test_the_critic_is_shown_with_the_parameters_that_memory_counts(settings: Settings) -> None:
    """Qwen2.5-7B without its head of 152,064 x 3,584, with a value head of 3,584 + 1."""
    plan = made(settings("data.val=[]", "model.path=Qwen/Qwen2.5-7B", algo="ppo"), kind="cuda")
    assert "critic: Qwen/Qwen2.5-7B, 7,070,622,721 parameters" in plan_lines(plan)
    assert plan.to_json()["model"]["critic_parameters"] == 7_070_622_721


def test_the_cheapest_relief_never_changes_the_gradient(settings: Settings) -> None:
    first = made(settings("model.dtype=float32", "data.val=[]")).savings[0]
    assert first.change.startswith("train.tokens_per_micro_batch=")


def test_a_relief_is_strong_enough_to_fit_where_one_can_be(settings: Settings) -> None:
    asked = settings("model.dtype=float32", "data.val=[]", "rollout.max_num_seqs=32")
    plan = made(asked, memory_gib=20.0)
    assert plan.fits is False
    assert plan.savings[0].fits is True


def test_where_nothing_fits_the_mildest_change_with_half_the_gain_is_shown(
    settings: Settings,
) -> None:
    overrides = ["model.dtype=float32", "data.val=[]", "algorithm.kl_loss=false"]
    first = made(settings(*overrides), memory_gib=1.0).savings[0]
    assert first.fits is False
    # 16,384 tokens give way to 8,192, not to the 1,536 of a single rollout
    assert first.change == "train.tokens_per_micro_batch=8192"


def test_a_checkpoint_holds_weights_and_moments_and_the_final_model_its_own_dtype(
    settings: Settings,
) -> None:
    config = settings("data.val=[]", "run.keep_checkpoints=3").config
    models = Models(policy=find_shape("Qwen/Qwen2.5-0.5B"))
    disk = plan_disk(config, models, free_gib=20.0)
    assert disk.checkpoint_gib * GIB == 12 * 494_032_768
    assert disk.final_gib * GIB == 2 * 494_032_768
    # three are kept while a fourth is written: 4 x 5.52 + 0.92 GiB
    assert disk.needed_gib == pytest.approx(23.005, abs=0.001)
    assert disk.fits is False


def test_judge_calls_are_rollouts_and_evaluations(settings: Settings) -> None:
    config = settings(
        "reward.judge.enabled=true", "train.prompts_per_step=10", "rollout.n=4",
        "data.max_prompt_tokens=50", "data.max_response_tokens=100", "run.eval_every=5",
        "train.mini_batch_prompts=10",
    ).config  # fmt: skip
    judge = plan_judge(config, steps=20, num_val=30, prompts=10)
    assert judge is not None
    # 20 steps x 40, evaluations at 0, 5, 10, 15 and 20, and canaries at the first step
    assert (judge.calls_per_step, judge.calls) == (40, 800 + 5 * 30 + 3)
    assert judge.tokens == 953 * (450 + 50 + 100 + 100)
    # qwen-plus: 600 tokens at $0.115 and 100 at $0.287 per million
    assert judge.cost_usd == pytest.approx(953 * (600 * 0.115 + 100 * 0.287) / 1e6)
    assert judge.price_date is not None


def test_a_judge_without_a_price_has_no_cost(settings: Settings) -> None:
    config = settings("reward.judge.enabled=true", "reward.judge.model=my-model").config
    judge = plan_judge(config, steps=1, num_val=0, prompts=4)
    assert judge is not None
    assert (judge.cost_usd, judge.price, judge.price_date) == (None, None, None)


def test_evaluations_are_counted_as_the_trainer_makes_them(settings: Settings) -> None:
    config = settings("run.eval_every=10").config
    assert [num_evaluations(config, steps) for steps in (1, 10, 11, 40)] == [2, 2, 3, 5]


def test_memory_given_by_hand_stands_in_for_the_device(settings: Settings) -> None:
    train = settings("train.device=cuda").config.train
    machine = find_machine(train, memory_gib=80.0)
    assert (machine.kind, machine.memory_gib) == ("cuda", 80.0)


def test_an_estimator_of_ones_own_is_asked_what_it_needs(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text(
        "raise RuntimeError('a plan imports nothing')\n"
        "def greedy(rewards_BT, mask_BT, *, baseline_B): ...\n"
        "def valued(rewards_BT, mask_BT, *, values_BT): ...\n"
    )
    judged = ["reward.judge.enabled=true", "train.prompts_per_step=10", "rollout.n=4",
              "train.mini_batch_prompts=10"]  # fmt: skip
    for name, calls, needs in (("greedy", 50, {"greedy"}), ("valued", 40, {"critic"})):
        config = settings(*judged, f"algorithm.advantage=mine.own:{name}").config
        judge = plan_judge(config, steps=1, num_val=0, prompts=10)
        assert judge is not None
        assert judge.calls_per_step == calls
        assert needs_of(config) == needs
    assert needs_of(settings("algorithm.advantage=nowhere.own:f").config) == frozenset()


def test_the_disk_is_that_of_the_run_directory(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Path] = []

    def free(path: Path) -> int:
        measured.append(path)
        return 2**30

    monkeypatch.setattr(disk_module, "free_bytes", free)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for setting in ("run.output_dir=~/runs/a", "run.output_dir=here/b", "run.name=c"):
        assert find_free_gib(settings(setting).config, tmp_path) == 1.0
    assert [str(path.relative_to(tmp_path)) for path in measured] == [
        "home/runs/a", "here/b", "outputs/c",
    ]  # fmt: skip
    kept = tmp_path / "old" / "checkpoints" / "step_1" / "x"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x" * 2**20)
    resumed = settings(f"run.resume={tmp_path / 'old'}").config
    assert find_free_gib(resumed, tmp_path) == 1.0 + 2**-10
    assert measured[-1] == tmp_path / "old"


@pytest.mark.parametrize("engine", ["auto", "torch", "fsdp", "deepspeed"])
def test_several_gpus_are_planned_for_or_said_not_to_be(settings: Settings, engine: str) -> None:
    asked = settings(f"train.engine={engine}", "train.n_gpus=4", "train.nnodes=2", "data.val=[]")
    plan = made(asked, kind="cuda")
    told = [warning for warning in plan.warnings if "train.n_gpus=4, train.nnodes=2" in warning]
    is_shared = engine != "torch"  # whole it does not fit, so auto takes fsdp
    assert plan.memory.numerics.ranks == (8 if is_shared else 1)
    assert len(told) == (0 if is_shared else 1)
    assert all("train.engine=fsdp shares the states out" in warning for warning in told)


@pytest.mark.parametrize(
    ("visible", "name", "devices"), [(None, "NVIDIA A", 2), ("1", "NVIDIA B", 1), ("", "CPU", 1)]
)
def test_gpus_are_those_that_nvidia_smi_names_and_the_environment_lets_through(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    visible: str | None,
    name: str,
    devices: int,
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho NVIDIA A, 81920, 0, 1\necho NVIDIA B, 24576, 0, 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = find_machine(settings().config.train)
    assert (machine.name, machine.devices) == (name, devices)
    if name != "CPU":
        assert machine.memory_gib == {"NVIDIA A": 80.0, "NVIDIA B": 24.0}[name]


def test_a_plan_of_missing_data_warns_and_counts_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    plan = plan_run(settings(*QUICKSTART, "data.train=[nowhere.parquet]"), tmp_path)
    assert (plan.steps_per_epoch, plan.steps) == (None, None)
    assert any("nowhere.parquet" in warning for warning in plan.warnings)
    assert "micro-batches" in plan.batch[0]


def test_rows_of_data_make_steps(settings: Settings, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"{i}+1=", "ground_truth": "2"}) for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    overrides = ["data.train=[rows.jsonl]", "train.prompts_per_step=16", "train.epochs=2"]
    plan = plan_run(settings(*QUICKSTART, *overrides), tmp_path)
    assert (plan.steps_per_epoch, plan.steps) == (3, 6)


def test_an_unknown_model_is_a_usage_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        plan_run(settings("model.path=./nowhere"), tmp_path)


def test_json_is_one_object_with_the_contract_s_keys(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_plan(plan_run(settings(*QUICKSTART), tmp_path), as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert {
        "phases", "fits", "batch", "checkpoint_gib", "judge", "suggestions", "steps_per_epoch",
        "steps", "warnings", "model", "disk",
    } <= set(said)  # fmt: skip
    assert {
        "name", "states_gib", "activations_gib", "logits_gib", "rollout_gib", "peak_gib", "fits",
    } <= set(said["phases"][0])  # fmt: skip
    assert said["judge"] is None
    assert said["model"]["parameters"] > 0
    assert {"free_gib", "needed_gib", "fits"} <= set(said["disk"])


def test_the_page_is_80_columns_wide_and_ends_with_a_verdict(settings: Settings) -> None:
    plan = made(settings("model.dtype=float32", "reward.judge.enabled=true", "data.val=[]"))
    lines = plan_lines(plan)
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("does not fit: the largest phase, update") for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "judge: qwen-plus" in text
    assert "tokens in all, about $" in text


def test_a_plan_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from rlcli.config.resolver import resolve\n"
        "from rlcli.plan import plan_run\n"
        "resolved = resolve(flags={}, files=[], env={}, algo='ppo',\n"
        "    overrides=['model.path=builtin:quickstart', 'reward.judge.enabled=true'])\n"
        "plan_run(resolved, Path.cwd()).to_json()\n"
        "heavy = {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "nodes", "sampler", "phase"),
    [("Qwen2.5-32B", 2, "vllm", "rollout"), ("Llama-3.1-70B", 8, "native", "loading")],
)
def test_a_model_that_cannot_be_loaded_does_not_fit_however_many_gpus_share_it(
    settings: Settings, name: str, nodes: int, sampler: str, phase: str
) -> None:
    resolved = settings(
        f"rollout.engine={sampler}", "train.engine=deepspeed", "train.zero_stage=3",
        "train.n_gpus=8",
        f"train.nnodes={nodes}", "algorithm.kl_loss=false", "model.gradient_checkpointing=true",
        "train.tokens_per_micro_batch=4096", "train.offload_optimizer=true",
    )  # fmt: skip
    machine = Machine(kind="cuda", name="GPU", memory_gib=80.0)
    shape = find_shape(f"owner/{name}")
    plan = make_memory_plan(resolved, num_prompts=1000, shape=shape, machine=machine)
    assert plan.fits is False
    assert plan.largest.name == phase
    if phase == "rollout":  # 61 GiB of weights in half of 80 GiB: share them, or give vLLM more
        wider, more, *_ = plan.savings
        assert wider.values == {"rollout.tensor_parallel": 2}
        assert more.values == {"rollout.memory_fraction": 0.8}
        assert wider.fits
        assert more.fits
