"""Agreement of rlcli.algos with the functions of verl 0.9.1 on random cases.

python bench/vs_verl.py VERL_FOLDER [--cases 600] [--seed 0]

VERL_FOLDER is the unpacked wheel (`pip download --no-deps verl==0.9.1`, then `unzip`), of which
nothing is copied here. Claimed: estimators, losses, their gradients and statistics, aggregation,
KL terms and rollout correction are verl's to 1e-5 in float32 and 1e-7 in float64, relative to the
size of the result. Cases have masks with holes, ties and empty rows; there is NaN in what ours may
not read: masked-out tokens for losses, and for estimators rows that are not valid, which verl is
not given. Left out are these deviations by intent (docs/algorithms.md):
- gmpo is a mean over non-empty rows: verl's, over all rows, is scaled by the ratio of the two.
- groups with a single valid row: every group has two or more.
- masked positions are 0 here: verl's are set to 0 before comparing.
- fewer than two tokens: verl cannot whiten one and divides by 0 or raises without any.
- clip_cov and kl_cov select once per mini-batch: a case is one, the random pick seeded as verl's.
Not compared: kl_cov's KL statistic, here the mean of -log-ratio, in verl of its absolute value.
Not counted, but listed below the table: float32 advantages of near ties, where rounding decides:
ours and verl's agree in float64 on the same inputs, and verl's float32 is off from that float64.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from rlcli.algos import advantages, aggregation, covariance, importance_sampling, kl, losses
from rlcli.algos.masked_stats import masked_mean
from rlcli.algos.registry import ESTIMATORS, LOSSES
from rlcli.config.schema import Aggregation, KLType
from rlcli.distributed.collectives import ALONE

VERSION = "0.9.1"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-7}
PART_WEIGHTS = {"part_a": 0.75, "part_b": 1.25}
VERL_OTB = ("tir_optimal_token_baseline", "optimal_token_baseline")
VERL_LOSSES = {"clip": "vanilla", "gmpo": "geo_mean"}
Tensors = Sequence[Tensor]
STATS = {"clip_frac": "pg_clipfrac", "clip_frac_lower": "pg_clipfrac_lower", "approx_kl": "ppo_kl"}


class Settings(dict[str, Any]):
    """A dict with its keys as attributes: what verl's functions read of a config."""

    __getattr__ = dict.__getitem__


def load_verl(folder: Path) -> SimpleNamespace:
    """verl's core and rollout modules, with stand-ins for imports that the functions do not use.

    verl's packages keep their folders but not their __init__ files, which import ray and the
    trainers. compute_is_metrics does nothing: it divides by the weights, which may all be 0.
    """
    version = folder / "verl/version/version"
    found = version.read_text().strip() if version.is_file() else "nothing"
    if found != VERSION:
        raise SystemExit(f"Found {found} in {folder}, expected verl {VERSION}. Unpack its wheel.")
    for name in ("verl", "verl.utils", "verl.trainer", "verl.trainer.ppo", "verl.workers"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder.joinpath(*name.split(".")))]
    stand_ins: dict[str, dict[str, Any]] = {
        "omegaconf": {"DictConfig": Settings}, "tensordict": {"TensorDict": Settings},
        "verl.trainer.config": {"AlgoConfig": type("AlgoConfig", (), {})},  # what losses refuse
        "verl.trainer.config.algorithm": {"RolloutCorrectionConfig": Settings},
        "verl.protocol": {"DataProto": Settings}, "verl.workers.config": {"ActorConfig": Settings},
        "verl.workers.config.actor": {"PolicyLossConfig": Settings},
        "verl.utils.device": {"get_device_name": lambda: "cpu", "get_torch_device": lambda: torch},
        "verl.utils.import_utils": {"deprecated": lambda _: lambda function: function},
    }  # fmt: skip
    for name, attributes in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    groupwise = importlib.import_module("verl.utils.groupwise")
    names = ("as_torch_index", "group_mean_std")
    vars(sys.modules["verl.utils"]).update({name: vars(groupwise)[name] for name in names})
    rollout = importlib.import_module("verl.trainer.ppo.rollout_corr_helper")
    vars(rollout)["compute_is_metrics"] = lambda **_: {}
    core = importlib.import_module("verl.trainer.ppo.core_algos")
    return SimpleNamespace(core=core, rollout=rollout)


class Comparison(NamedTuple):
    """Two results that should be one. Errors are relative to the size `floor` at least."""

    name: str
    ours: Tensor
    theirs: Tensor
    floor: float = 1e-3

    def error(self, found: Tensor | None = None) -> float:
        """Largest relative difference of ours, or of `found`, to theirs; infinite for a NaN."""
        if self.ours.shape != self.theirs.shape or self.ours.dtype != self.theirs.dtype:
            return torch.inf
        found, theirs = (self.ours if found is None else found).double(), self.theirs.double()
        error = (found - theirs).abs().max() / theirs.abs().max().clamp(min=self.floor)
        return torch.inf if error.isnan() else error.item()


class Case(NamedTuple):
    """Random inputs. floats: by name, one row per rollout, of one dtype."""

    seed: int
    floats: dict[str, Tensor]
    group_B: Tensor
    valid_B: Tensor
    settings: Settings


def random_case(seed: int, dtype: torch.dtype) -> Case:
    """1 to 4 groups of 2 to 6 valid rows, up to 3 rows that are not valid, in any order.

    Masks of any length, 0 included, half of them with holes; rewards on one token or on all;
    log-ratios of 0 to 50; advantages per row or token, some of them 0.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    num_prompts, num_invalid = rng.randint(1, 4), rng.choice([0, 0, 1, 3])
    group_B = torch.arange(num_prompts).repeat_interleave(rng.randint(2, 6))
    group_B = torch.cat([group_B, torch.randint(0, num_prompts, (num_invalid,))])
    rows, width = shape = (len(group_B), rng.randint(1, 12))
    mask_BT = torch.arange(width) < torch.randint(0, width + 1, (rows, 1))
    mask_BT &= torch.rand(shape) > rng.choice([0.0, 0.3])
    any_B, baseline_B = torch.randn(2, rows, dtype=dtype)
    binary_B, halves_B = torch.randint(0, 2, (rows,)), torch.randint(0, 3, (rows,)) / 2
    score_B = rng.choice([any_B, binary_B, halves_B, torch.full((rows,), 0.1), 0 * binary_B])
    is_paid_BT = torch.arange(width) == torch.randint(0, width, (rows, 1))
    all_BTV = (torch.randn(*shape, 7, dtype=dtype) * rng.choice([0.1, 2, 5])).log_softmax(-1)
    normal_NBT = torch.randn(6, *shape, dtype=dtype)
    gap_BT = (normal_NBT[0] * rng.choice([0, 0.01, 0.3, 2, 15])).clamp(-50, 50)
    advantages_BT = rng.choice([normal_NBT[1], normal_NBT[1, :, :1].expand(shape)])
    weights_BT = torch.rand(shape, dtype=dtype) * 2 * (torch.rand(shape) > rng.choice([0, 0.3]))
    floats = {
        "mask": (mask_BT | (rng.random() < 0.1)).to(dtype),
        "rewards": rng.choice([normal_NBT[5]] + 4 * [is_paid_BT * score_B.to(dtype)[:, None]]),
        "part_a": binary_B.to(dtype), "part_b": any_B, "baseline_B": baseline_B,
        "logprobs_BT": (all_BTV[..., 0] + gap_BT).clamp(max=rng.choice([0, 50])),
        "old_logprobs_BT": all_BTV[..., 0], "sum_pi_squared_BT": all_BTV.exp().square().sum(-1),
        "advantages_BT": advantages_BT * (torch.rand(shape) > rng.choice([0, 0.3])),
        "correction_BT": rng.choice([weights_BT, torch.ones_like(weights_BT)]),
        "values_BT": normal_NBT[2], "returns_BT": normal_NBT[4],
        "old_values_BT": normal_NBT[2] + normal_NBT[3] * rng.choice([0, 0.3, 1]),
    }  # fmt: skip
    order = torch.randperm(rows) if rng.random() < 0.3 else torch.arange(rows)
    is_valid_B = order < rows - num_invalid
    return Case(seed, floats, group_B[order], is_valid_B, random_settings(rng))


def random_settings(rng: random.Random) -> Settings:
    """A value for every setting, under our names and verl's."""
    low, high, ratio_c = rng.choice([(0.2, 0.28, 3), (3e-4, 4e-4, 1.5), (1, 4, 20), (0.4, 0.4, 2)])
    tau_pos, tau_neg = rng.choice([(1, 1.05), (2, 0.7)])
    gamma, lam = rng.choice([(1, 0.95), (0.99, 0.9), (1, 1), (0.9, 0)])
    std, mode = rng.random() < 0.5, rng.choice(get_args(Aggregation))
    band, share = rng.choice([(0, 1.5), (0.1, 5), (1, 5)]), rng.choice([0.0002, 0.2, 0.9])
    return Settings(
        gamma=gamma, lam=lam, scale_by_std=std, norm_adv_by_std_in_grpo=std, mode=mode,
        gdpo_reward_keys=list(PART_WEIGHTS), gdpo_reward_weights=list(PART_WEIGHTS.values()),
        clip_low=low, clip_high=high, clip_ratio=0.2, clip_ratio_low=low, clip_ratio_high=high,
        clip_ratio_c=ratio_c, tau_pos=tau_pos, tau_neg=tau_neg, dro_beta=rng.choice([0.1, 1.0]),
        clip_cov_ratio=share, clip_cov_low=band[0], clip_cov_high=band[1], clip_cov_lb=band[0],
        clip_cov_ub=band[1], kl_cov_ratio=share, kl_cov_coef=0.7, ppo_kl_coef=0.7,
    )  # fmt: skip


def compare_estimators(verl: SimpleNamespace, case: Case) -> Iterator[Comparison]:
    """Every estimator on the whole batch, gdpo with one part and with two."""
    mask_BT = case.floats["mask"]
    if mask_BT[case.valid_B].sum() < 2:
        return
    floats = {key: x.clone() for key, x in case.floats.items()}
    for key in floats.keys() - {"mask"}:
        floats[key][~case.valid_B] = torch.nan
    inputs = floats | case.settings | {"part_weights": PART_WEIGHTS, "all_reduce": lambda x: x}
    inputs |= {"group_B": case.group_B, "valid_B": case.valid_B}
    for name, parts in [*((name, ()) for name in ESTIMATORS), ("gdpo", tuple(PART_WEIGHTS))]:
        inputs["parts"] = {key: floats[key] for key in parts}
        kwargs = {key: inputs[key] for key in ESTIMATORS[name].inputs + ESTIMATORS[name].settings}
        ours = getattr(advantages, name)(floats["rewards"], mask_BT, **kwargs)
        for form in VERL_OTB if name == "otb" else (name,):
            if form == "optimal_token_baseline" and (mask_BT[:, 1:] > mask_BT[:, :-1]).any():
                continue  # positions mean nothing across holes
            theirs = torch.zeros(2, *mask_BT.shape, dtype=mask_BT.dtype)
            theirs[:, case.valid_B] = verl_estimate(verl, form, case, parts).to(theirs)
            theirs = torch.where(mask_BT != 0, theirs, 0.0)
            label = f"{form} (parts)" if parts else form
            yield Comparison(label, ours.advantages_BT, theirs[0], 1e-2)
            if ours.returns_BT is not None:
                yield Comparison(f"{form} returns", ours.returns_BT, theirs[1])


def verl_estimate(verl: SimpleNamespace, name: str, case: Case, parts: tuple[str, ...]) -> Tensor:
    """[2, B, T]: verl's advantages and returns of the valid rows.

    Its gdpo casts parts to float32; in float64 they go through the functions that it calls.
    """
    floats = {key: x[case.valid_B] for key, x in case.floats.items()}
    mask_BT, index = floats["mask"], case.group_B[case.valid_B].numpy().astype(str)
    std, width = case.settings.scale_by_std, mask_BT.shape[1]
    if parts and mask_BT.dtype == torch.float64:
        grpo = verl.core.compute_grpo_outcome_advantage
        scores = [torch.nn.functional.pad(floats[part][:, None], (0, width - 1)) for part in parts]
        scaled = [grpo(x, mask_BT, index, norm_adv_by_std_in_grpo=std) for x in scores]
        total_BT = sum(PART_WEIGHTS[part] * x[0] for part, x in zip(parts, scaled, strict=True))
        return verl.core.verl_F.masked_whiten(total_BT, mask_BT).expand(2, -1, -1)
    inputs = case.settings | {
        "token_level_rewards": floats["rewards"], "response_mask": mask_BT, "index": index,
        "values": floats["values_BT"], "reward_baselines": floats["baseline_B"],
        "old_log_probs": floats["old_logprobs_BT"], "sum_pi_squared": floats["sum_pi_squared_BT"],
        "config": case.settings,
    }  # fmt: skip
    if parts:
        tokens_BT = torch.ones(len(mask_BT), width + 1, dtype=torch.long)
        inputs["batch"] = {"prompts": tokens_BT[:, :1], "attention_mask": tokens_BT}
        inputs["non_tensor_batch"] = {part: floats[part].numpy() for part in parts}
    estimate = verl.core.get_adv_estimator_fn(name)
    asked = inputs.keys() & inspect.signature(estimate).parameters.keys()
    return torch.stack(estimate(**{key: inputs[key] for key in asked}))


def with_gradient(name: str, at: Tensors, pair: Tensors, floor: float) -> Iterator[Comparison]:
    """Ours and verl's values, and the gradients of their sums by the tensors `at`."""
    yield Comparison(name, pair[0], pair[1], floor)
    grads = [torch.autograd.grad(x.sum(), y)[0] for x, y in zip(pair, at, strict=True)]
    yield Comparison(f"{name} gradient", grads[0], grads[1], 1e-6)


def compare_losses(verl: SimpleNamespace, case: Case) -> Iterator[Comparison]:
    """Every policy loss and the value loss, aggregated, with gradient and statistics."""
    # every candidate of clip_cov: each has its own way to draw some of them
    settings = Settings(case.settings, clip_cov_ratio=1.0)
    x, mask_BT = case.floats, case.floats["mask"]
    config = Settings(settings, policy_loss=settings, global_batch_info={})
    num_tokens, num_rows = (int(number) for number in aggregation.count(mask_BT))
    counts = {"num_tokens": num_tokens, "num_sequences": num_rows, "scale_factor": mask_BT.shape[1]}
    named = [x[key] for key in ("logprobs_BT", "old_logprobs_BT", "advantages_BT")]
    for name, entry in LOSSES.items():
        at = tuple(named[0].clone().requires_grad_() for _ in range(2))
        junk = [y.masked_fill(mask_BT == 0, torch.nan) for y in (at[0], *named[1:])]
        mode = "seq_mean_token_mean" if name in ("gmpo", "sapo") else settings.mode
        kwargs = {key: settings[key] for key in entry.settings}
        if entry.select:
            picks: dict[str, Any] = {key: settings[key] for key in entry.select_settings}
            picks |= {"draws_BT": torch.rand(mask_BT.shape), "gather": lambda own: ([own], 0)}
            kwargs["selected_BT"] = vars(covariance)[f"select_{name}"](*junk, mask_BT, **picks)
        estimate = getattr(covariance if entry.select else losses, name)
        ours = estimate(*junk, mask_BT, correction_BT=x["correction_BT"], **kwargs)
        torch.manual_seed(case.seed)
        theirs, stats = verl.core.get_policy_loss_fn(VERL_LOSSES.get(name, name))(
            named[1], at[1], named[2], mask_BT, mode.replace("_", "-"), config, x["correction_BT"]
        )
        theirs = theirs * len(mask_BT) / num_rows if name == "gmpo" else theirs
        pair = aggregation.aggregate(ours.loss_BT, mask_BT, mode, **counts), theirs
        yield from with_gradient(f"{name} loss", at, pair, ours.loss_BT.abs().max().item() + 1e-6)
        shared = ours.stats_BT.keys() & {key for key in STATS if f"actor/{STATS[key]}" in stats}
        for key in sorted(shared if name != "kl_cov" else ()):
            mean = masked_mean(ours.stats_BT[key], mask_BT)
            expected = torch.tensor(stats[f"actor/{STATS[key]}"], dtype=mean.dtype)
            yield Comparison(f"{name} loss statistics", mean, expected, 1.0)
    at = tuple(x["values_BT"].clone().requires_grad_() for _ in range(2))
    old_BT, returns_BT, mode = x["old_values_BT"], x["returns_BT"], settings.mode
    ours = losses.value_loss(at[0], old_BT, returns_BT, mask_BT, cliprange=0.5)
    theirs, clip_frac = verl.core.compute_value_loss(
        at[1], returns_BT, old_BT, mask_BT, 0.5, mode.replace("_", "-")
    )
    pair = aggregation.aggregate(ours.loss_BT, mask_BT, mode, **counts), theirs
    yield from with_gradient("value loss", at, pair, 1e-3)
    mean = masked_mean(ours.stats_BT["clip_frac"], mask_BT)
    yield Comparison("value loss statistics", mean, clip_frac, 1.0)


def compare_terms(verl: SimpleNamespace, case: Case) -> Iterator[Comparison]:
    """Aggregation with counts of a larger batch, KL estimates and rollout correction."""
    mask_BT, returns_BT = case.floats["mask"], case.floats["returns_BT"]
    logprobs_BT, ref_BT = case.floats["logprobs_BT"], case.floats["old_logprobs_BT"]
    counts = {"num_tokens": 77, "num_sequences": 13, "scale_factor": 19.0}
    for mode in get_args(Aggregation):
        total = aggregation.aggregate(returns_BT, mask_BT, mode, **counts)
        size = aggregation.aggregate(returns_BT.abs(), mask_BT, mode, **counts)
        theirs = verl.core.agg_loss(returns_BT, mask_BT, mode.replace("_", "-"), 1, 77, 13, 19)
        yield Comparison(f"aggregate {mode}", total, theirs, size.item())
    for kind in get_args(KLType):
        at = (logprobs_BT.clone().requires_grad_(), logprobs_BT.clone().requires_grad_())
        pair = kl.kl(at[0], ref_BT, kind), verl.core.kl_penalty(at[1], ref_BT, kind)
        yield from with_gradient(f"kl {kind}", at, pair, 1e-3)
    pair, gap_BT = (logprobs_BT, ref_BT), logprobs_BT - ref_BT
    for level, floor in itertools.product(("token", "sequence"), (None, 0.5)):
        spec = f"{floor}_2.0" if floor else 2.0
        ours = importance_sampling.importance_weights(
            *pair, mask_BT, level=level, cap=2.0, floor=floor
        )
        theirs = verl.rollout.compute_rollout_correction_weights(gap_BT, mask_BT, level, spec)[0]
        yield Comparison(f"{level} weights", ours, theirs)
    for kind, low, high, spec in (("k1", 0.9, 1.2, "0.9_1.2"), ("k3", 0.0, 0.05, "0.05")):
        limits = {"kind": f"seq_{kind}", "low": low, "high": high}
        ours, name = (
            importance_sampling.rejection_mask(*pair, mask_BT, **limits),
            f"seq_mean_{kind}",
        )
        theirs = verl.rollout.compute_rollout_rejection_mask(gap_BT, mask_BT, name, spec)[0]
        yield Comparison(f"rejection seq_{kind}", ours, theirs)
    k3 = importance_sampling.mismatch(*pair, mask_BT, all_reduce=ALONE.all_reduce)["kl_k3"]
    expected = verl.rollout.compute_offpolicy_metrics(*pair, mask_BT)["k3_kl"]
    yield Comparison("mismatch k3", *torch.tensor([k3, expected], dtype=torch.float64))


def near_tie(verl: SimpleNamespace, case: Case, seen: Comparison) -> str | None:
    """Why advantages in float32 are over tolerance, if rounding alone is to blame."""
    floats = {key: x.double() for key, x in case.floats.items()}
    exact = {x.name: x for x in compare_estimators(verl, case._replace(floats=floats))}[seen.name]
    ours, theirs = exact.error(seen.ours), exact.error(seen.theirs)
    if exact.error() > TOLERANCE[torch.float64] or theirs <= TOLERANCE[torch.float32]:
        return None
    return f"{seen.error():.1e} apart; from float64, ours {ours:.1e}, verl {theirs:.1e}"


def main() -> int:
    """Compare, print, and give the exit status: 1 if a case is over tolerance."""
    parser = argparse.ArgumentParser(description="Compare rlcli with verl.")
    parser.add_argument("folder", metavar="VERL_FOLDER", type=Path, help="unpacked wheel")
    for name, default in (("--cases", 600), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    verl = load_verl(args.folder)
    errors: dict[tuple[str, torch.dtype], list[float]] = {}
    ties: list[str] = []
    for number, dtype in itertools.product(range(args.cases), TOLERANCE):
        case = random_case(args.seed * 1_000_000 + number, dtype)
        for compare in (compare_estimators, compare_losses, compare_terms):
            for result in compare(verl, case) if case.floats["mask"].any() else ():
                error = result.error()
                may_tie = compare is compare_estimators and dtype == torch.float32
                may_tie &= error > TOLERANCE[dtype]
                if may_tie and (reason := near_tie(verl, case, result)):
                    ties.append(f"- {result.name}, case {case.seed}: {reason}")
                else:
                    errors.setdefault((result.name, dtype), []).append(error)
    print("| function | dtype | cases | worst relative error | over tolerance |")
    print("|---" * 5 + "|")
    for (name, dtype), found in sorted(errors.items(), key=str):
        over = sum(error > TOLERANCE[dtype] for error in found)
        print(f"| {name} | {str(dtype)[6:]} | {len(found)} | {max(found):.1e} | {over} |")
    print(f"\nRounding in float32, not counted above: {len(ties)}", *ties, sep="\n")
    return int(any(max(found) > TOLERANCE[dtype] for (_, dtype), found in errors.items()))


if __name__ == "__main__":
    sys.exit(main())
