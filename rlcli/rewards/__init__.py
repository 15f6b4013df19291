"""Scores of rollouts: built-in rules and users' functions, run in processes of their own."""

from __future__ import annotations

from rlcli.rewards.scorer import build_scorer, check_reward, gold_problems

__all__ = ["build_scorer", "check_reward", "gold_problems"]
