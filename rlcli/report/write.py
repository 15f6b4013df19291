"""The report put where it belongs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from rlcli.errors import UsageError
from rlcli.report.page import page
from rlcli.report.read import RunReport, read_run

LOG = logging.getLogger(__name__)


REPORT_FILE = "report.html"


def write_page(runs: Sequence[RunReport], file: Path) -> None:
    """The page of these runs in `file`, whole or not at all. Raises: UsageError."""
    text = page(runs)
    scratch = file.with_name(f".{file.name}.part")
    try:
        if file.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, file)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise UsageError(
            f"--html {file} cannot be written: {error.strerror}. Give a file in a folder that is "
            "there and can be written to."
        ) from error


def write_report(run_dir: Path) -> Path | None:
    """RUN/report.html, or None and a warning: a report must not fail the run it tells of."""
    file = run_dir / REPORT_FILE
    try:
        write_page([read_run(run_dir)], file)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        LOG.warning(f"{file} is not written: {reason}")
        return None
    return file
