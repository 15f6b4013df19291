"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fast_selection import FastSelection
from hypothesis import HealthCheck, settings
from saved_models import TINY, save_tiny_model, save_tokenizer

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("RLCLI_LANG", None)
# how long an example takes is this machine's business
settings.register_profile(
    "steady", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "leave out the tests that start processes, train, or are marked slow"
    parser.addoption("--fast", action="store_true", help=help_)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        config.pluginmanager.register(FastSelection(config))


LONGEST = ("distributed", "cli", "launcher", "run_dir", "trainer", "envs", "test_api.py")
"""Rooms whose tests start processes: side by side, a long file that begins last runs alone."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(room_of(item.path), len(LONGEST)))


def room_of(path: Path) -> str:
    """The folder below tests that a file is in, or its own name."""
    return path.relative_to(ROOT / "tests").parts[0] if path.is_relative_to(ROOT / "tests") else ""


HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}


@pytest.fixture(autouse=True)
def heeded_signals() -> Iterator[None]:
    """A session ignores them to the end of its process, which a test goes on with."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data (GSM8K, MATH, HumanEval); tests that need it skip without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data is not here: put it into ../shared/data")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 directory with random weights and a BPE tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "qwen2", "Qwen2")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama directory with random weights and a BPE tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", "Llama")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-label Llama classifier with random weights."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("classifier")
    size = save_tokenizer(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **TINY, vocab_size=size, num_labels=1, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder
