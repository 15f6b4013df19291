"""Several processes give the weights, moments and metrics that one gives."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from engine_parts import make_engine, one_update
from launched import check_ranks_end_well
from rank_updates import ALGORITHMS, GROUPS, HALF, save_final, settings, train
from safetensors.torch import load_file
from saved_models import save_tiny_model

from rlcli.config.schema import Config
from rlcli.distributed.collectives import ALONE, partition

ROOT = Path(__file__).resolve().parents[2]
PLAIN = [*ALGORITHMS, "lora", "small", "grpo-rows", "ppo-rows"]
SHARDED = [
    *(f"ppo-zero{stage}" for stage in ("1", "2", "3", "3-host")),
    *("grpo-rows-zero3", "small-zero2", "offloaded-zero2", "lora-zero3"),
]
SHARDED_NIGHTLY = [
    *(f"grpo-rows-zero{stage}" for stage in (1, 2)),
    *(f"{name}-zero2" for name in ("rloo", "reinforce", "remax")),
    *(f"{name}-zero3" for name in ("small", "checkpointed", "offloaded")),
    *(f"{name}-zero3-released" for name in ("ppo", "lora", "small")),
    *("lora-zero1", "lora-zero3-host", "small-zero3-host-released"),
    "kl_cov-zero2",
]
FSDP = ["ppo-fsdp", "grpo-rows-fsdp", "remax-fsdp", "small-fsdp", "lora-fsdp", "ppo-fsdp-cpu"]
FSDP_NIGHTLY = [
    *(f"{name}-fsdp" for name in ("rloo", "reinforce", "ties", "kl_cov", "clip_cov", "kl_abs")),
    *("checkpointed-fsdp", "lora-rows-fsdp-cpu", "ppo-rows-fsdp"),
]
WENT_ON_FSDP = [
    *("ppo-fsdp@save", "lora-fsdp@save", "ppo-fsdp@load:ppo-fsdp", "lora-fsdp@load:lora-fsdp"),
    *("ppo@load:ppo-fsdp", "ppo-fsdp@load:ppo"),
]
WENT_ON_BOTH = ["ppo-zero3@load:ppo-fsdp", "ppo-zero1@save", "ppo-fsdp@load:ppo-zero1"]
WENT_ON_SHARDED = [
    *(f"{name}@{mode}" for name in ("ppo-zero2", "ppo-zero3", "lora-zero3")
      for mode in ("save", f"load:{name}")),
    *("ppo@load:ppo", "ppo-zero1@load:ppo", "ppo-zero3@load:ppo-zero2", "lora-zero2@load:lora"),
]  # fmt: skip
"""Each after the state that it loads; one process saves `ppo` and `lora`."""
HAS_DEEPSPEED = find_spec("deepspeed") is not None
NEEDS_DEEPSPEED = pytest.mark.skipif(not HAS_DEEPSPEED, reason="needs deepspeed")
Found = dict[str, dict[str, torch.Tensor]]
UNEQUAL = ("batch/samples", "batch/tokens")
"""Of rank 0's first micro-batch."""


def run_cases(size: int, model: Path, out: Path, cases: list[str]) -> None:
    """Run the cases on `size` processes."""
    check_ranks_end_well(size, [ROOT / "tests" / "support" / "rank_updates.py", model, out, *cases])


@pytest.fixture(scope="module")
def alone(tiny_model: Path) -> Found:
    """By case without its engine: what one process gives."""
    return {}


@pytest.fixture(scope="module")
def two_ranks(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that take the cases of all tests, in one start."""
    out = tmp_path_factory.mktemp("two")
    for name in ("ppo", "lora"):
        train(tiny_model, settings(name), ALONE, save=out / name)
    cases = [*PLAIN, *FSDP, *WENT_ON_FSDP]
    if HAS_DEEPSPEED:
        cases += [*SHARDED, *WENT_ON_BOTH, *WENT_ON_SHARDED]
    run_cases(2, tiny_model, out, [*dict.fromkeys(cases)])
    return out


def run_and_compare(size: int, model: Path, out: Path, cases: list[str], alone: Found) -> None:
    run_cases(size, model, out, cases)
    for case in cases:
        compare(case, out, model, alone)


def without_engine(case: str) -> str:
    return case.partition("@")[0].partition("-zero")[0].partition("-fsdp")[0]


def expected_of(plain: str, model: Path, alone: Found) -> dict[str, torch.Tensor]:
    if plain not in alone:
        alone[plain] = train(model, settings(plain), ALONE)
    return alone[plain]


def compare(case: str, out: Path, model: Path, alone: Found) -> None:
    expected = expected_of(without_engine(case), model, alone)
    check(load_file(out / f"{case.replace(':', '-')}.safetensors"), expected, case)


def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], case: str) -> None:
    """A run that went on has the metrics of its own steps only."""
    assert {name for name in expected if not name.startswith("metric.")} <= found.keys()
    went_on = f"metric.{HALF}."
    steps = {name for name in found if name.startswith("metric.")}
    if any(name.startswith("metric.0.") for name in steps):
        assert found.keys() == expected.keys()
    else:
        assert any(name.startswith(went_on) for name in steps)
        assert found.keys() <= expected.keys()
    for name, value in found.items():
        if not name.endswith(UNEQUAL):
            torch.testing.assert_close(
                value.float(), expected[name].float(), atol=1e-5, rtol=1e-4, msg=f"{case} {name}"
            )


@pytest.mark.parametrize("case", PLAIN)
def test_two_ranks_give_what_one_gives(
    case: str, two_ranks: Path, tiny_model: Path, alone: Found
) -> None:
    compare(case, two_ranks, tiny_model, alone)


@pytest.mark.parametrize("case", FSDP)
def test_fsdp_gives_what_one_process_gives(
    case: str, two_ranks: Path, tiny_model: Path, alone: Found
) -> None:
    compare(case, two_ranks, tiny_model, alone)


@NEEDS_DEEPSPEED
@pytest.mark.parametrize("case", SHARDED)
def test_every_stage_of_deepspeed_gives_what_one_process_gives(
    case: str, two_ranks: Path, tiny_model: Path, alone: Found
) -> None:
    compare(case, two_ranks, tiny_model, alone)


@pytest.mark.parametrize(
    ("size", "cases"),
    [
        (1, ["ppo-fsdp", "ppo-zero2", "lora-zero3"]),
        (3, ["ppo", "grpo-rows", "small"]),
        *(
            pytest.param(size, cases, marks=pytest.mark.nightly)
            for size, cases in (
                (4, ["ppo", "grpo-rows", "small"]),
                (2, FSDP_NIGHTLY),
                (3, ["ppo-fsdp", "lora-fsdp-cpu"]),
                (4, ["grpo-rows-fsdp", "ppo-fsdp"]),
                (2, SHARDED_NIGHTLY),
                (4, ["small-zero3", "ppo-zero2"]),
            )
        ),
    ],
)
def test_any_number_of_ranks_gives_the_same(
    size: int, cases: list[str], tiny_model: Path, tmp_path: Path, alone: Found
) -> None:
    """On three ranks the shares are unequal."""
    cases = [case for case in cases if HAS_DEEPSPEED or "-zero" not in case]
    if not cases:
        pytest.skip("needs deepspeed")
    run_and_compare(size, tiny_model, tmp_path, cases, alone)


def test_shares_go_on_under_other_ranks_and_engines(
    two_ranks: Path, tiny_model: Path, alone: Found
) -> None:
    for case in ("ppo-fsdp@load:ppo-fsdp", "lora-fsdp@load:lora-fsdp"):
        same_to_the_bit(case, two_ranks)
    for case in (*WENT_ON_FSDP, *(WENT_ON_BOTH if HAS_DEEPSPEED else ())):
        if "@load" in case:
            compare(case, two_ranks, tiny_model, alone)
    assert len([*(two_ranks / "ppo-fsdp").glob("share-*.safetensors")]) == 2
    assert not (two_ranks / "ppo-fsdp" / "policy.safetensors").exists()
    found = train(tiny_model, settings("lora"), ALONE, load=two_ranks / "lora-fsdp")
    check(found, expected_of("lora", tiny_model, alone), "torch after lora-fsdp")
    # on three ranks the rows of a tensor of 32 are 11, 11 and 10
    run_cases(3, tiny_model, two_ranks, ["ppo-fsdp@load:ppo-fsdp"])
    compare("ppo-fsdp@load:ppo-fsdp", two_ranks, tiny_model, alone)


def same_to_the_bit(case: str, out: Path) -> None:
    """A run that went on has what the run without a break has."""
    expected = load_file(out / f"{case.partition('@')[0]}.safetensors")
    for name, value in load_file(out / f"{case.replace(':', '-')}.safetensors").items():
        assert torch.equal(value, expected[name]), f"{case} {name}"


@NEEDS_DEEPSPEED
def test_a_state_goes_on_under_other_ranks_and_stages(
    two_ranks: Path, tiny_model: Path, alone: Found
) -> None:
    for case in WENT_ON_SHARDED:
        name, _, mode = case.partition("@")
        if mode == f"load:{name}" and name != "ppo":  # one process saved that
            same_to_the_bit(case, two_ranks)
        elif mode != "save":
            compare(case, two_ranks, tiny_model, alone)
    for name in ("ppo-zero2", "ppo-zero3", "lora-zero3"):
        plain = name.partition("-zero")[0]
        found = train(tiny_model, settings(plain), ALONE, load=two_ranks / name)
        check(found, expected_of(plain, tiny_model, alone), f"{plain} after {name}")


def test_the_final_model_of_every_engine_is_the_torch_engines(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "tied", "Qwen2", tie_word_embeddings=True)
    cases = []
    for name in ("grpo", "lora"):
        state = tmp_path / f"{name}-state"
        train(model, settings(name), ALONE, save=state)
        save_final(model, settings(name), tmp_path / name, ALONE, state=state)
        engines = ["fsdp"]
        if HAS_DEEPSPEED:
            engines += ["zero1", "zero3-released"]
        cases += [f"{name}-{engine}@final:{state.name}" for engine in engines]
    run_cases(2, model, tmp_path, cases)
    for case in cases:
        expected, found = tmp_path / case.partition("-")[0], tmp_path / case.partition("@")[0]
        files = sorted(path.relative_to(expected) for path in expected.rglob("*.safetensors"))
        assert files
        for file in files:
            one, other = load_file(expected / file), load_file(found / file)
            assert one.keys() == other.keys()
            assert "lm_head.weight" not in one
            assert all(torch.equal(other[name], value) for name, value in one.items())


def gradient_of_bfloat16(model: Path, wanted: Config) -> dict[str, torch.Tensor]:
    """Of one update in one process, by parameter: the micro-batches' added up in float32."""
    engine = make_engine(model, wanted, dtype=torch.bfloat16)
    updater = engine.policy_updater
    found: dict[str, torch.Tensor] = {}

    def backward(loss: torch.Tensor) -> None:
        loss.backward()
        for name, parameter in updater.parameters.items():
            if parameter.grad is not None:
                found[name] = found.get(name, 0.0) + parameter.grad.float()
                parameter.grad = None

    updater.backward = backward  # type: ignore[method-assign]
    updater.step = lambda factor: (0.0, True)  # type: ignore[method-assign]
    one_update(engine, wanted, groups=GROUPS)
    return found


@pytest.mark.nightly
def test_shares_of_bfloat16_gradients_are_added_up_in_float32(
    tiny_model: Path, tmp_path: Path
) -> None:
    cases = ["cut-fsdp@half"]
    if HAS_DEEPSPEED:
        cases += ["cut-zero2@half", "cut-zero3-released@half"]
    expected = gradient_of_bfloat16(tiny_model, settings("cut"))
    run_cases(2, tiny_model, tmp_path, cases)
    for case in cases:
        moments = load_file(tmp_path / f"{case}.safetensors")
        gaps = [10 * moments[f"policy.exp_avg.{name}"] - value for name, value in expected.items()]
        share = torch.cat([gap.flatten() for gap in gaps]).norm()
        share = share / torch.cat([value.flatten() for value in expected.values()]).norm()
        assert share < 0.004, case  # in bfloat16 it is 0.008


@NEEDS_DEEPSPEED
def test_deepspeed_takes_the_device_of_the_run_though_there_is_a_gpu() -> None:
    script = (
        "import torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "from rlcli.engines.deepspeed_engine import load_deepspeed\n"
        "load_deepspeed('cpu')\n"
        "from deepspeed.accelerator import get_accelerator\n"
        "print(get_accelerator()._name)\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert told.stdout.splitlines()[-1:] == ["cpu"], told.stderr


def test_prompts_are_dealt_by_number_and_cost() -> None:
    assert partition([5, 1, 4, 1, 3], 2, per_round=5) == [[0, 1, 3], [2, 4]]
    assert partition([1, 1], 3, per_round=2) == [[0], [1], []]


def test_every_rank_has_a_part_of_every_mini_batch() -> None:
    shares = partition([9, 9, 9, 9, 1, 1, 1, 1, 5, 5, 5], 2, per_round=4)
    assert sorted(shares[0] + shares[1]) == list(range(11))
    for share in shares:
        assert [sum(number // 4 == part for number in share) for part in (0, 1)] == [2, 2]
