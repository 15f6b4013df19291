"""rlcli: post-trains a language model with reinforcement learning, by command or from Python."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlcli.api import Evaluation, evaluate, load_run, serve, train
    from rlcli.errors import RlcliError
    from rlcli.report.record import RunRecord

__version__ = "0.1.0"
__all__ = ["Evaluation", "RlcliError", "RunRecord", "evaluate", "load_run", "serve", "train"]

# transformers imports DeepSpeed where that is installed, which then says that there is no GPU
logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def __getattr__(name: str) -> Any:
    """The public names, imported when one is used: the command line needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module 'rlcli' has no attribute {name!r}")
    from rlcli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
