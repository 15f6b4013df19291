"""What is told of a vLLM server that died: the cause, where its log has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcli.rollout.vllm.engine import VllmSettings
from rlcli.rollout.vllm.server import Server

STARTED = "(APIServer pid=7) INFO 11-22 [launcher.py:46] Route: /resume, Methods: POST"
CAUSE = "(EngineCore pid=8) ERROR 11-22 [core.py:906] RuntimeError: out of \x1b[1mmemory"
POINTER = (
    "(APIServer pid=7) ERROR 11-22 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: "
    "EngineCore encountered an issue. See stack trace (above) for the root cause."
)
NOISE = (
    'nanobind: leaked 4 instances!\n - leaked type "ATOMIC_OP"\n'
    "x.py:24: DeprecationWarning: gone soon\n  warnings.warn(\n"
    "(APIServer pid=7) WARNING 11-22 [x.py:1] ValueError: not the cause"
)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([STARTED, CAUSE, POINTER, NOISE], "RuntimeError: out of [1mmemory"),
        ([STARTED, POINTER, NOISE], POINTER[POINTER.index("vllm.v1") :]),
        ([STARTED, "", STARTED, "x" * 300, STARTED, NOISE], f"{STARTED} / {'x' * 200} / {STARTED}"),
        ([NOISE], ""),
    ],
)
def test_the_cause_comes_before_what_points_to_it_and_noise_is_no_word(
    lines: list[str], words: str, tmp_path: Path
) -> None:
    settings = VllmSettings(
        model_dir=tmp_path,
        dtype="float32",
        device="cpu",
        max_tokens=9,
        max_num_seqs=1,
        temperature=1.0,
    )
    server = Server(settings, gpus=[], log=tmp_path / "vllm_0.log")
    assert server.last_words() == ""
    server.log.write_text("\n".join(lines), encoding="utf-8")
    assert server.last_words() == words
