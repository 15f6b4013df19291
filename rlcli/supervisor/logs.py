"""What the ranks but rank 0 say: a file each in the run directory, which goes on at every start."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import IO

from rlcli.data.files import printable
from rlcli.place import log_path

LAST_BYTES, LAST_LINES, LINE_LIMIT = 8192, 3, 200
"""Of a log that is quoted."""
TORCH_PREFIX = re.compile(r"^\[rank\d+\]:")
"""Of a traceback's lines once torch.distributed runs."""


class Logs:
    """Those of one start on this machine."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._begins: dict[int, int] = {}
        self._made = missing_folders(run_dir)

    def open(self, rank: int) -> IO[bytes]:
        """Raises: OSError."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        log = log_path(self._run_dir, rank).open("ab")
        self._begins[rank] = log.tell()
        return log

    def last_words(self, rank: int) -> str:
        """The last lines of this start's part; rank 0 has spoken to the user."""
        if rank not in self._begins:
            return ""
        try:
            with log_path(self._run_dir, rank).open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._begins[rank], end - LAST_BYTES))
                text = log.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        lines = [TORCH_PREFIX.sub("", line).strip() for line in text.splitlines()]
        lines = [line for line in lines if line.strip("^~ ")]
        return " / ".join(printable(line, LINE_LIMIT) for line in lines[-LAST_LINES:])

    def forget(self) -> None:
        """Take this start's part away, and the folders that were made for it."""
        with suppress(OSError):
            for rank, begin in self._begins.items():
                path = log_path(self._run_dir, rank)
                if begin:
                    os.truncate(path, begin)
                else:
                    path.unlink(missing_ok=True)
            for folder in self._made:
                folder.rmdir()


def missing_folders(folder: Path) -> list[Path]:
    """`folder` and those above it that are not there, the innermost first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]
