"""Estimates of a run's memory, steps, disk and judge calls, made without torch or weights."""

from __future__ import annotations

from rlcli.plan.report import RunPlan, make_memory_plan, plan_run

__all__ = ["RunPlan", "make_memory_plan", "plan_run"]
