"""Adapters on quantised weights, with real bitsandbytes, which has a CPU backend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from rlcli.cli.main import main
from rlcli.hub import ASSETS
from rlcli.models.weight_files import check_merge

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install bitsandbytes")
pytestmark = pytest.mark.filterwarnings("default")  # bitsandbytes warns about its CPU kernels

RUN = ["--preset", "quickstart", "data.val=[]", "rollout.n=4", "train.prompts_per_step=8",
       "train.mini_batch_prompts=8", "--max_steps", "2", "lora.rank=4"]  # fmt: skip


@pytest.fixture(params=[4, 8])
def quantised(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The quickstart model with 4-bit or 8-bit weights."""
    settings = (
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        if request.param == 4
        else {"load_in_8bit": True}
    )
    source, folder = ASSETS / "quickstart", tmp_path / "quantised"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        quantization_config=transformers.BitsAndBytesConfig(**settings),
        device_map="cpu",
        dtype=torch.float32,
    )
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return int(ended.value.code or 0)


def test_adapters_train_on_a_quantised_base_and_are_not_merged_into_it(
    quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    train = ["train", *RUN, "--model", str(quantised)]
    assert code_of(*train, "--output_dir", "run") == 0
    final = tmp_path / "run" / "checkpoints" / "final"
    assert (final / "adapter_model.safetensors").is_file()
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    steps = [json.loads(line) for line in metrics.splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert steps[0]["grad_norm"] > 0
    assert code_of("ckpt", "verify", "run") == 0
    capsys.readouterr()
    for words in (
        ["ckpt", "export", "run", "dest", "--merge-lora"],
        [*train, "--merge_lora", "--dry_run"],
    ):
        assert code_of(*words) == 2
        assert "cannot be merged into it without loss" in capsys.readouterr().err
    assert not (tmp_path / "dest").exists()


def test_plain_weights_take_a_merge() -> None:
    check_merge({"model_type": "qwen2"}, where="model.path")
