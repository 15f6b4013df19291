"""A resolver with all checks, in an empty directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlcli.config.resolved import Resolved
from rlcli.config.resolver import resolve
from rlcli.setup.checks import check


@pytest.fixture
def checked(tmp_path: Path) -> Any:
    """`check(resolve(...))`; `file=` text becomes x.yaml."""

    def call(*overrides: str, file: str | None = None, **arguments: Any) -> Resolved:
        given: dict[str, Any] = {"flags": {}, "files": [], "env": {}, "cwd": tmp_path}
        if file is not None:
            (tmp_path / "x.yaml").write_text(file, encoding="utf-8")
            given["files"] = [Path("x.yaml")]
        return check(resolve(overrides=overrides, **given | arguments))

    return call
