"""A recommended command with its cautions."""

from __future__ import annotations

from dataclasses import dataclass

from rlcli.config.resolved import Resolved
from rlcli.tools.recommend.command import FUNCTION, Command
from rlcli.tools.recommend.placing import Placed, largest_that_fits, place, place_sharded
from rlcli.tools.recommend.situation import JUDGED, Pick, Situation
from rlcli.tools.recommend.tree import choose


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A pick, its command with what makes it fit, and what to know of it."""

    pick: Pick
    placed: Placed
    cautions: list[str]

    def resolve(self) -> Resolved:
        """The settings that the command means, environment and local files aside."""
        return self.placed.command.resolve()

    def words(self) -> list[str]:
        """The command line, a word each."""
        return self.placed.command.words()

    def command(self) -> str:
        """The command line as a shell reads it."""
        return self.placed.command.line()


def recommend(situation: Situation) -> list[Advice]:
    """The best choice, then the second."""
    return [
        _advice(situation, pick, is_best=rank == 0) for rank, pick in enumerate(choose(situation))
    ]


def _advice(s: Situation, pick: Pick, *, is_best: bool) -> Advice:
    placed = place(s, pick)
    cautions = _memory_cautions(s, pick, placed)
    if is_best and s.gpus > 1:
        cautions.append(_several_gpus(s, pick))
    return Advice(pick=pick, placed=placed, cautions=cautions + _cautions(s, placed.command))


def _memory_cautions(s: Situation, pick: Pick, placed: Placed) -> list[str]:
    if placed.placement == "lora":
        return ["full weights do not fit: this trains LoRA adapters, at 10 times the rate"]
    if placed.placement == "whole":
        return []
    smaller = largest_that_fits(s, pick)
    cure = f"{smaller} would fit" if smaller else "no smaller model of its family would fit"
    return [
        f"it does not fit: LoRA, with all that helps, still takes {placed.largest.peak_gib:.1f} "
        f"of {s.memory_gib:.1f} GiB; {cure}"
    ]


def _several_gpus(s: Situation, pick: Pick) -> str:
    """Uses for the other GPUs."""
    shared = place_sharded(s, pick)
    peak = f"{shared.plan.largest.peak_gib:.1f} GiB on each"
    says = f"all weights then fit, with {peak}" if shared.fits else f"even so they need {peak}"
    wants_critic = s.stable or s.task in JUDGED
    if wants_critic and pick.algorithm != "ppo" and place_sharded(s, Pick("ppo", 1, "")).fits:
        says += "; so does ppo, with its critic"
    return (
        f"every one of the {s.gpus} GPUs holds all of this; --engine fsdp shares the states "
        f"among them: {says}"
    )


def _cautions(s: Situation, command: Command) -> list[str]:
    said: list[str] = []
    if s.gpus == 0:
        said.append(
            "no GPU: a model of this size is slow on a CPU. rlcli train --preset quickstart --algo "
            "NAME shows an algorithm at work in about a minute"
        )
    own = {"MODEL": command.flags.get("model") == "MODEL", "train.jsonl": "data" in command.flags}
    own |= {"reward.py:compute_score": FUNCTION in command.overrides}
    if named := [name for name, is_there in own.items() if is_there]:
        said.append(f"put your own in place of {', '.join(named)}")
    if command.flags.get("use_api_reward"):
        said.append("the judge wants DASHSCOPE_API_KEY, or another --rm_api_type; it costs money")
    return said
