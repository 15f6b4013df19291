"""What is mixed into vLLM's worker: it is named to vLLM, which imports it where the model is."""

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
    """Takes the trainer's weights. A server's are called by name, over its /collective_rpc."""

    rlcli_version: int | None = None

    def rlcli_take_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Whole Hugging Face weights, each let go before the next is asked for."""
        take_weights(self, weights)

    def rlcli_fetch_weights(self, host: str, port: int, key: str, version: int) -> None:
        """Whole weights, from the trainer that offers them there."""
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
        """Remove folders that were made for an adapter, where they are this machine's."""
        for folder in folders:
            if Path(folder).name.startswith("rlcli-adapter-"):
                rmtree(folder, ignore_errors=True)

    def rlcli_about(self) -> dict[str, Any]:
        """What the trainer has to know of this worker."""
        return {"version": self.rlcli_version, **about_worker(self)}
