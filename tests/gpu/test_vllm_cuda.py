"""vLLM beside the trainer on a GPU: it sleeps while the trainer learns, then takes its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from rlcli.cli.main import main
from rlcli.rollout.vllm.versions import installed_version

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(installed_version() is None, reason="needs vllm"),
]


@pytest.mark.parametrize("settings", [[], ["lora.rank=8", "train.lr=3e-3"]], ids=["full", "lora"])
def test_quickstart_learns_with_vllm_on_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["--preset", "quickstart", "rollout.engine=vllm", "rollout.memory_fraction=0.3"]
    monkeypatch.setattr(sys, "argv", ["rlcli", "train", *asked, "--output_dir", "run", *settings])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    scores = [line["eval/pass@1"] for line in lines if "eval/pass@1" in line]
    assert scores[-1] >= 1.5 * scores[0]
    gaps = [line["sampler/logprob_diff_mean"] for line in lines if "reward_mean" in line]
    assert max(gaps) < 0.1
