"""How often a run is started again."""

from __future__ import annotations

from rlcli.launcher.job import RestartBudget


def test_three_in_ten_minutes_and_then_again_as_they_age() -> None:
    budget = RestartBudget(3, window_s=600.0)
    assert [budget.take(at_s) for at_s in (0.0, 100.0, 200.0, 599.0)] == [1, 2, 3, None]
    assert budget.take(600.0) == 3
    assert budget.take(650.0) is None
    assert budget.take(700.0) == 3
    assert budget.take(5000.0) == 1
