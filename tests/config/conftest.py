"""A resolver in an empty directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlcli.config.resolved import Resolved
from rlcli.config.resolver import resolve


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """`resolve` in an empty directory; `file=` text becomes x.yaml."""

    def call(*overrides: str, file: str | None = None, **arguments: Any) -> Resolved:
        given: dict[str, Any] = {"flags": {}, "files": [], "env": {}, "cwd": tmp_path}
        if file is not None:
            (tmp_path / "x.yaml").write_text(file, encoding="utf-8")
            given["files"] = [Path("x.yaml")]
        return resolve(overrides=overrides, **given | arguments)

    return call
