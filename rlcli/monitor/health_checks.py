"""Health checks of a run: one function per verdict, on the metrics of its last steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from rlcli.config.schema import Config
from rlcli.monitor.trend import LAST_KEPT, is_rising, last_values, noise, recent_values
from rlcli.types import StepRecord

KL_RANGE = (0.001, 0.1)
"""Healthy KL per token to the reference, according to the guides."""
KL_LOW_STEPS = 50
"""At a learning rate of 1e-6, a healthy run takes some tens of steps to reach 0.001."""
MAX_CLIP = 0.3
"""Upper end of the guides' range: above it, most of an update's gradient is discarded."""
NO_CLIP_STEPS = 20
MAX_TRUNCATED = 0.2
"""Truncated responses rarely hold an answer: above a fifth, the reward measures the limit."""
MAX_SAMPLER_GAP = 0.01
"""Mean probability difference between sampler and trainer, above float32 rounding."""
MAX_SAMPLER_GAP_BF16 = 0.03
"""The same in bfloat16: SmolLM2-135M under vLLM with synced weights has 0.008 to 0.016."""
MAX_TIED = 0.8
"""Share of groups without reward variance; quickstart, mostly solved, ends at 0.6."""
UNSCORED_BY_JUDGE = "judge/unscored_"
SAME_SCORES = 0.01
"""Standard deviation below which a judge's scores do not vary; its scale has steps of 0.11."""
MAX_LENGTH_CORRELATION = 0.7
"""Above it, length explains half of the reward's variance (r squared)."""
MAX_UNSCORED = 0.05
"""Below a twentieth, occasional failed calls do no harm; above a fifth, the run pauses itself."""
ENTROPY_FALL = 1 / 3
"""Share of the entropy FAST_STEPS before; quickstart, which learns fast, keeps two thirds."""
ENTROPY_GONE = 0.05
"""Share of the initial entropy below which the policy hardly explores."""
FAST_STEPS = 10
LENGTH_GROWTH = 2.0
LENGTH_STEPS = 20
"""Reasoning that earns reward also grows longer, but rarely doubles within so few steps."""
FALL_NOISE = 3.0
"""In step-to-step deviations: means of 5 steps rarely differ this much by chance."""
FALL_SHARE = 0.1
MIN_TREND_STEPS = 20
SOLVED = 0.95
"""Mean reward above which it is fine for a policy to stop exploring."""

LEVEL_STEPS = 2
"""Steps in a row that must be bad, because a single small batch can be bad by chance."""
MEAN_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthVerdict:
    """A problem and its cause (`says`), and the change to make (`cure`)."""

    name: str
    says: str
    cure: str


def _learns_fully(steps: Sequence[StepRecord], config: Config, count: int) -> bool:
    """Whether the learning rate is at least half its full value (no warm-up or decay)."""
    rates = last_values(steps, "lr", count)
    return bool(rates) and min(rates) >= config.train.lr / 2 > 0


def _all_zero(steps: Sequence[StepRecord]) -> bool:
    means = last_values(steps, "reward_mean", LEVEL_STEPS)
    spreads = last_values(steps, "reward_std", LEVEL_STEPS)
    return bool(means) and bool(spreads) and not any(means) and not any(spreads)


def _rewards(steps: Sequence[StepRecord]) -> list[float]:
    return [step["reward_mean"] for step in steps if "reward_mean" in step]


def _is_lost(steps: Sequence[StepRecord]) -> bool:
    """Whether the policy stopped learning because it collapsed (not because it is slow)."""
    first = fmean(recent_values(steps[:MEAN_STEPS], "entropy") or [0.0])
    return _all_zero(steps) or steps[-1].get("entropy", first) < ENTROPY_GONE * first


def _is_solved(steps: Sequence[StepRecord]) -> bool:
    return steps[-1].get("reward_mean", 0.0) >= SOLVED


def _kl_knob(config: Config) -> str:
    name = "kl_loss_coef" if config.algorithm.kl_loss else "kl_coef"
    return f"algorithm.{name} (now {getattr(config.algorithm, name):g})"


def reward_zero(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Every score is 0."""
    if not _all_zero(steps):
        return None
    before = max(_rewards(steps))
    if before > 0:
        says = f"it was {before:.2g}, and the policy lost what it could do"
        cure = f"Lower train.lr (now {config.train.lr:g}); --resume STEP goes back to a checkpoint."
    else:
        says, cure = _why_zero(steps[-1], config)
    return HealthVerdict(name="reward_zero", says=f"reward is 0 everywhere: {says}.", cure=cure)


def _why_zero(step: StepRecord, config: Config) -> tuple[str, str]:
    limit = f"data.max_response_tokens (now {config.data.max_response_tokens:,})"
    if step.get("truncated_share", 0.0) >= 0.5:
        cut = step["truncated_share"]
        return f"{cut:.0%} of the responses are cut before they end", f"Raise {limit}."
    if step.get("rollouts/empty_share", 0.0) >= 0.5:
        share = step["rollouts/empty_share"]
        return f"{share:.0%} of the responses are empty", (
            "Look at the prompts (rlcli data show): a base model may need another form."
        )
    if (share := step.get("rollouts/gold_share", 0.0)) >= 0.1:
        return f"{share:.0%} of the responses hold the gold answer and no answer is extracted", (
            "Ask in the prompt for the form that reward.fn reads, or set another reward.fn."
        )
    if (share := step.get("rollouts/no_number_share", 0.0)) >= 0.5:
        return f"{share:.0%} of the responses hold no number to extract, and the golds are one", (
            "Ask in the prompt for the final answer, or start from an instruction-tuned model.path."
        )
    if step.get("reward/format") == 0.0:
        return "no response has the form asked for (reward/format is 0)", (
            "Show the form in the prompt, or give reward.weights a part that is easier to earn."
        )
    return "the answers are wrong, or the reward does not read them", (
        "See rlcli rollouts view --zero; then easier prompts, a larger rollout.n or a stronger "
        "model.path."
    )


def unscored_share(steps: Sequence[StepRecord], config: Config) -> float | None:
    """Share of the last step's rollouts without a score, if LEVEL_STEPS in a row are too high."""
    rollouts = config.train.prompts_per_step * config.rollout.n
    shares = [
        step["unscored"] / (rollouts * step.get("dynamic_sampling/rounds", 1.0))
        for step in steps[-LEVEL_STEPS:]
        if "unscored" in step
    ]
    is_bad = len(shares) == LEVEL_STEPS and min(shares) > MAX_UNSCORED
    return shares[-1] if is_bad else None


def is_for_judge(step: StepRecord, config: Config) -> bool:
    """Whether the judge leaves rollouts unscored: it is the only reward, or it counted faults."""
    reward = config.reward
    is_alone = not reward.composite and not reward.judge.rule_first
    return reward.judge.enabled and (is_alone or any(UNSCORED_BY_JUDGE in name for name in step))


def unscored(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Too many rollouts without a score; the judge has its own verdict for this."""
    share = unscored_share(steps, config)
    if share is None or is_for_judge(steps[-1], config):
        return None
    says = f"the reward leaves {share:.0%} of the rollouts unscored; they are masked out."
    cure = f"Fix the reward function, or raise reward.timeout_s (now {config.reward.timeout_s:g})."
    return HealthVerdict(name="unscored", says=says, cure=cure)


def zero_variance(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Too many groups without reward variance."""
    tied = last_values(steps, "zero_variance_share", MEAN_STEPS)
    if not tied or fmean(tied) <= MAX_TIED or _all_zero(steps):
        return None
    if steps[-1].get("judge/score_std", 1.0) < SAME_SCORES:  # the judge's own check reports it
        return None
    mean = steps[-1].get("reward_mean", 0.0)
    says = f"{tied[-1]:.0%} of the groups score all alike and teach nothing (reward {mean:.2f})."
    if mean >= 0.5:
        cure = "Harder prompts, or algorithm.dynamic_sampling=true, which draws others."
    else:
        cure = f"Raise rollout.n (now {config.rollout.n}), or begin with easier prompts."
    return HealthVerdict(name="zero_variance", says=says, cure=cure)


def kl_high(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """The policy is far from the reference."""
    values = last_values(steps, "kl_divergence", LEVEL_STEPS)
    if not values or min(values) <= KL_RANGE[1]:
        return None
    says = f"kl_divergence {values[-1]:.2g} is above {KL_RANGE[1]:g}: far from the reference model."
    cure = f"Raise {_kl_knob(config)}, or lower train.lr (now {config.train.lr:g})."
    return HealthVerdict(name="kl_high", says=says, cure=cure)


def kl_low(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """The policy stays at the reference and reward does not rise."""
    values = last_values(steps, "kl_divergence", FAST_STEPS)
    is_low = bool(values) and max(map(abs, values)) < KL_RANGE[0]
    if not is_low or steps[-1]["step"] < KL_LOW_STEPS or _is_lost(steps):
        return None
    if not _learns_fully(steps, config, FAST_STEPS) or is_rising(steps, "reward_mean", LAST_KEPT):
        return None
    says = (
        f"kl_divergence {values[-1]:.2g} is below {KL_RANGE[0]:g} after "
        f"{steps[-1]['step']:.0f} steps and reward does not rise: the policy hardly moves."
    )
    cure = f"Raise train.lr (now {config.train.lr:g}), or lower {_kl_knob(config)}."
    return HealthVerdict(name="kl_low", says=says, cure=cure)


def clip_high(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Updates exceed the clip range."""
    values = last_values(steps, "clip_fraction", LEVEL_STEPS)
    if not values or min(values) <= MAX_CLIP:
        return None
    says = (
        f"clip_fraction {values[-1]:.2g} is above {MAX_CLIP:g}: updates overshoot the clip range."
    )
    cure = f"Lower train.lr (now {config.train.lr:g}){_fewer_updates(config)}."
    return HealthVerdict(name="clip_high", says=says, cure=cure)


def _updates(config: Config) -> int:
    train = config.train
    return -(-train.prompts_per_step // train.mini_batch_prompts) * train.ppo_epochs


def _fewer_updates(config: Config) -> str:
    train = config.train
    if train.ppo_epochs > 1:
        return f", or train.ppo_epochs (now {train.ppo_epochs})"
    larger = f", or raise train.mini_batch_prompts (now {train.mini_batch_prompts})"
    return larger if _updates(config) > 1 else ""


def clip_none(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Several updates per step, but the policy hardly moves."""
    values = last_values(steps, "clip_fraction", NO_CLIP_STEPS)
    updates = _updates(config)
    if not values or any(values) or updates == 1:
        return None
    if not _learns_fully(steps, config, NO_CLIP_STEPS) or _is_lost(steps):
        return None
    if is_rising(steps, "reward_mean", LAST_KEPT):
        return None
    says = (
        f"clip_fraction is 0 for {NO_CLIP_STEPS} steps of {updates} updates and reward does not "
        "rise: the policy hardly moves."
    )
    cure = f"Raise train.lr (now {config.train.lr:g})."
    return HealthVerdict(name="clip_none", says=says, cure=cure)


def entropy_collapse(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """The policy stops exploring before the task is solved."""
    values = recent_values(steps, "entropy")
    if len(values) < FAST_STEPS + MEAN_STEPS or _is_solved(steps):
        return None
    now = fmean(values[-MEAN_STEPS:])
    sooner = fmean(values[-FAST_STEPS - MEAN_STEPS : -FAST_STEPS])
    first = fmean(recent_values(steps[:MEAN_STEPS], "entropy") or [sooner])
    if now < ENTROPY_FALL * sooner:
        says = f"entropy fell from {sooner:.2g} to {now:.2g} within {FAST_STEPS} steps: collapse."
    elif now < ENTROPY_GONE * first:
        says = (
            f"entropy is {now:.2g}, {now / first:.0%} of its start: nothing is explored any more."
        )
    else:
        return None
    low, high = config.algorithm.clip_bounds
    wider = f", algorithm.clip_high (now {high:g}; dapo has 0.28)" if low == high else ""
    cure = (
        f"Raise algorithm.entropy_coef (now {config.algorithm.entropy_coef:g}){wider}, or lower "
        f"train.lr (now {config.train.lr:g})."
    )
    return HealthVerdict(name="entropy_collapse", says=says, cure=cure)


def length_runaway(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Responses grow without earning more reward."""
    values = recent_values(steps, "response_length_mean")
    if len(values) < LENGTH_STEPS // 2 + MEAN_STEPS:
        return None
    now = fmean(values[-MEAN_STEPS:])
    window = values[-LENGTH_STEPS - MEAN_STEPS :]
    then = fmean(window[:MEAN_STEPS])
    if now < LENGTH_GROWTH * then or is_rising(steps, "reward_mean", len(window)):
        return None
    says = (
        f"responses grew from {then:.0f} to {now:.0f} tokens within {len(window) - 1} steps and "
        "reward did not rise with them."
    )
    cure = (
        "Try algorithm.overlong_penalty=true, or algorithm.aggregation=seq_mean_token_sum_norm, "
        "which does not pay for length."
    )
    return HealthVerdict(name="length_runaway", says=says, cure=cure)


def truncation(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Too many responses reach the length limit."""
    values = last_values(steps, "truncated_share", LEVEL_STEPS)
    if not values or min(values) <= MAX_TRUNCATED or _all_zero(steps):
        return None
    says = f"{values[-1]:.0%} of the responses are cut by the length limit."
    cure = (
        f"Raise data.max_response_tokens (now {config.data.max_response_tokens:,}), or set "
        "algorithm.overlong_filter=true to leave them out of the loss."
    )
    return HealthVerdict(name="truncation", says=says, cure=cure)


def sampler_gap(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Sampler and trainer give the same tokens different probabilities."""
    key = "sampler/prob_diff_mean" if "sampler/prob_diff_mean" in steps[-1] else "sampler/prob_gap"
    values = last_values(steps, key, LEVEL_STEPS)
    limit = MAX_SAMPLER_GAP if config.model.dtype == "float32" else MAX_SAMPLER_GAP_BF16
    if not values or min(values) <= limit:
        return None
    says = f"sampler and trainer differ by {values[-1]:.2g} in a token's probability on average."
    if config.rollout.async_steps:
        cure = "The rollouts are a step old: lower train.lr, or set rollout.async_steps=0."
    elif "sampler/weight_mean" in steps[-1]:
        cure = "algorithm.correction makes up for part of it; model.dtype=float32 removes it."
    else:
        cure = "Set algorithm.correction=token, or model.dtype=float32."
    return HealthVerdict(name="sampler_gap", says=says, cure=cure)


def reward_length(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """The reward correlates with response length."""
    values = last_values(steps, "reward_length_correlation", MEAN_STEPS)
    if not values or min(map(abs, values)) <= MAX_LENGTH_CORRELATION or _all_zero(steps):
        return None
    if config.reward.fn == "length" or len({value > 0 for value in values}) > 1:
        return None
    longer = "longer" if values[-1] > 0 else "shorter"
    says = f"reward follows length (r = {values[-1]:.2f}): {longer} responses are what is paid for."
    if values[-1] < 0 and steps[-1].get("truncated_share", 0.0) > 0.05:
        limit = config.data.max_response_tokens
        cure = f"Long ones are cut: raise data.max_response_tokens (now {limit:,})."
    else:
        cure = "Read some (rlcli rollouts view --best); then mend the reward or the judge's prompt."
    return HealthVerdict(name="reward_length", says=says, cure=cure)


def reward_falling(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Reward has fallen by more than chance."""
    values = recent_values(steps, "reward_mean")
    if len(values) < MIN_TREND_STEPS:
        return None
    means = [fmean(values[i - 5 : i]) for i in range(5, len(values) + 1)]
    best, now = max(means), means[-1]
    if best - now <= max(FALL_NOISE * noise(values), FALL_SHARE * abs(best)):
        return None
    says = f"reward fell from {best:.3g} to {now:.3g} (means of 5 steps)."
    again = f"Lower train.lr (now {config.train.lr:g}){_fewer_updates(config)}"
    more = f", or raise {_kl_knob(config)}" if config.algorithm.needs_reference else ""
    cure = f"{again}{more}; an earlier checkpoint is resumed with --resume STEP."
    return HealthVerdict(name="reward_falling", says=says, cure=cure)


def skipped_updates(steps: Sequence[StepRecord], config: Config) -> HealthVerdict | None:
    """Updates skipped because of NaN or infinite gradients."""
    skipped = steps[-1].get("skipped_updates", 0.0)
    if not skipped:
        return None
    says = f"{skipped:.0f} updates were skipped: the gradient was not finite."
    cure = f"Lower train.lr (now {config.train.lr:g}), or set model.dtype=float32."
    return HealthVerdict(name="skipped_updates", says=says, cure=cure)


Check = Callable[[Sequence[StepRecord], Config], HealthVerdict | None]
CHECKS: tuple[Check, ...] = (
    reward_zero,
    unscored,
    truncation,
    zero_variance,
    kl_high,
    kl_low,
    clip_high,
    clip_none,
    entropy_collapse,
    length_runaway,
    sampler_gap,
    reward_length,
    reward_falling,
    skipped_updates,
)
