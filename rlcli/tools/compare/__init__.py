"""Compare algorithms on one recipe, or finished runs, in one table."""

from __future__ import annotations

from rlcli.tools.compare.jobs import Failure, Job, Stop, run_job
from rlcli.tools.compare.table import Result, Row, read_result, tabulate, unlike_settings

__all__ = [
    "Failure",
    "Job",
    "Result",
    "Row",
    "Stop",
    "read_result",
    "run_job",
    "tabulate",
    "unlike_settings",
]
