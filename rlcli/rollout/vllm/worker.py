"""Extension class for vLLM's workers, which vLLM imports by name in their processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from shutil import rmtree
from typing import Any

from torch import Tensor

from rlcli.rollout.vllm.adapter import write_adapter
from rlcli.rollout.vllm.versions import about_worker, take_weights
from rlcli.rollout.vllm.weight_transfer import receive


class Receiver:
    """Receives the trainer's weights. On a server, methods are called by /collective_rpc."""

    rlcli_version: int | None = None

    def rlcli_take_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load full Hugging Face weights, releasing each before reading the next."""
        take_weights(self, weights)

    def rlcli_fetch_weights(self, host: str, port: int, key: str, version: int) -> None:
        """Fetch full weights from the trainer at `host` and `port`."""
        self.rlcli_version = None
        take_weights(self, receive(host, port, key))
        self.rlcli_version = version

    def rlcli_fetch_adapter(
        self, host: str, port: int, key: str, version: int, lora: dict[str, Any]
    ) -> dict[str, Any]:
        """{"folder": where the adapter lies on this machine, in peft's format}."""
        folder = Path(tempfile.mkdtemp(prefix="rlcli-adapter-"))
        weights = receive(host, port, key)
        write_adapter(weights, folder, rank=lora["rank"], alpha=lora["alpha"])
        self.rlcli_version = version
        return {"folder": str(folder)}

    def rlcli_drop_adapter(self, folders: list[str]) -> None:
        """Remove an adapter's folders, if they are on this machine."""
        for folder in folders:
            if Path(folder).name.startswith("rlcli-adapter-"):
                rmtree(folder, ignore_errors=True)

    def rlcli_about(self) -> dict[str, Any]:
        """Status of this worker for the trainer."""
        return {"version": self.rlcli_version, **about_worker(self)}
