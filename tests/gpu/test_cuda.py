"""The same code path on CUDA."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from rlcli.cli.main import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_quickstart_doubles_its_score_on_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, algo: str
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["rlcli", "train", "--preset", "quickstart", "--algo", algo, "--output_dir", "run"]
    monkeypatch.setattr(sys, "argv", [*argv, f"model.dtype={dtype}", "critic.lr=1e-3"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    scores = [line["eval/pass@1"] for line in lines if "eval/pass@1" in line]
    assert scores[-1] >= 2 * scores[0]
