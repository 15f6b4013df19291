"""A language model as the reward: checks before the run, one probe call, and the scorer."""

from __future__ import annotations

from rlcli.rewards.judge.check import check_judge, probe_judge
from rlcli.rewards.judge.process import JudgeProcess
from rlcli.rewards.judge.scorer import JudgeScorer
from rlcli.rewards.judge.shared import RemoteJudge, SharedJudge

__all__ = [
    "JudgeProcess",
    "JudgeScorer",
    "RemoteJudge",
    "SharedJudge",
    "check_judge",
    "probe_judge",
]
