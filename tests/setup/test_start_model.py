"""Where training starts when --model is an adapter or a run, and what final models look like."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_runs import metrics, quickstart
from transformers import AutoModelForCausalLM

from rlcli.cli.main import main
from rlcli.config.schema import Config
from rlcli.errors import ModelError
from rlcli.hub import ASSETS
from rlcli.setup.resources import find_model

pytestmark = pytest.mark.filterwarnings("ignore")
BASE = ASSETS / "quickstart"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return int(ended.value.code or 0)


def adapter(folder: Path, base: str = str(BASE)) -> torch.nn.Module:
    """A folder in peft's format, without a tokenizer, and the model it makes of its base."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    made: Any = get_peft_model(model, settings)
    made.save_pretrained(folder)
    file = folder / "adapter_config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"base_model_name_or_path": base}))
    return made


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=torch.tensor([[5, 9, 4, 7]]), use_cache=False).logits


@pytest.mark.parametrize("lora", [(), ("lora.rank=2",)])
def test_an_adapter_is_the_start_and_the_reference(lora: tuple[str, ...]) -> None:
    made = adapter(Path("adapter"))
    words = ("--model", "adapter", "--output_dir", "run", "--max_steps", "1", *lora)
    kl = ("algorithm.kl_loss=true", "algorithm.kl_loss_coef=0.1")
    assert quickstart(*words, *kl) == 0
    # the reference is base + adapter as well: a policy that has not moved has no KL
    (row,) = metrics()
    assert row["kl_loss"] == 0
    assert row["sampler/prob_gap"] < 1e-6
    assert quickstart(*words, "--output_dir", "still", "train.lr=1e-12", "run.merge_lora=true") == 0
    merged = Path("still/checkpoints/final") / ("merged" if lora else "")
    start = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    # the quickstart is stored in bfloat16, and so is the merged start
    assert torch.allclose(logits(start), logits(made), atol=0.03)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    assert not torch.allclose(logits(start), logits(base), atol=0.1)


def test_a_run_is_its_final_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart("--output_dir", "first", "--max_steps", "1") == 0
    assert quickstart("--model", "first", "--output_dir", "next", "--max_steps", "1") == 0
    assert quickstart("--model", "first/checkpoints/step_1", "--dry_run") == 2
    assert "rlcli ckpt export first DEST --step 1" in capsys.readouterr().err


def test_a_dry_run_merges_nothing() -> None:
    adapter(Path("adapter"))
    assert quickstart("--model", "adapter", "--dry_run") == 0
    assert not Path("cache/rlcli").exists()


def test_an_adapter_whose_base_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    adapter(Path("adapter"), base="/nowhere/base")
    assert quickstart("--model", "adapter", "--output_dir", "run") == 2
    said = capsys.readouterr().err
    assert "/nowhere/base" in said
    assert "adapter_config.json" in said
    assert not Path("run").exists()


def test_an_adapter_is_checked_by_its_files_before_anything_is_merged() -> None:

    adapter(Path("adapter"))
    file = Path("adapter/adapter_model.safetensors")
    whole, tensors = file.read_bytes(), load_file(file)

    def refused(merges: bool) -> str:
        with pytest.raises(ModelError) as found:
            find_model(Config(), "adapter", merges=merges)
        return str(found.value)

    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    assert "git lfs pull" in refused(False)
    file.write_bytes(whole[:-100])
    assert "is cut off" in refused(False)
    file.unlink()
    assert "has no adapter_model.safetensors" in refused(False)
    torch.save(tensors, file.with_suffix(".bin"))
    assert "adapter_model.bin, which is not read" in refused(False)
    file.with_suffix(".bin").unlink()
    rows = AutoModelForCausalLM.from_pretrained(BASE).get_input_embeddings().weight
    longer = {"base_model.model.model.embed_tokens.weight": torch.zeros(len(rows) + 8, 4)}
    save_file(tensors | longer, file)
    for merges in (False, True):
        assert f"has {len(rows) + 8} rows, the base {len(rows)}" in refused(merges)
    first = min(tensors)
    tensors[first].view(-1)[0] = float("nan")
    save_file(tensors, file)
    assert first in refused(True)
    assert "not finite" in refused(True)


def test_files_of_a_run_are_readable_by_colleagues_and_have_a_card() -> None:
    umask = os.umask(0o022)
    try:
        assert quickstart("--output_dir", "run", "--max_steps", "1", "lora.rank=2",
                          "run.merge_lora=true") == 0  # fmt: skip
    finally:
        os.umask(umask)
    folder = Path("run/checkpoints/final")
    for path in (folder, *folder.rglob("*")):
        wanted = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    for card in (folder / "README.md", folder / "merged" / "README.md"):
        text = card.read_text()
        assert "More Information Needed" not in text
        assert "builtin:quickstart" in text
        assert "builtin:sums" in text
        assert "| `lora.rank` | 2 |" in text
        assert str(torch.__version__) in text


def test_verify_and_export_refuse_a_merged_model_without_its_experts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hashes are right: what was written is what is there."""
    from rlcli.run_dir.checkpoint import seal

    words = ("lora.rank=2", "run.merge_lora=true", "--max_steps", "1")
    assert quickstart("--output_dir", "run", *words) == 0
    assert run("ckpt", "verify", "run") == 0
    folder = Path("run/checkpoints/final")
    file = folder / "merged" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "up_proj" in name)
    tensors[name.replace("up_proj", "up_proj.base_layer")] = tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})
    folder.rename("changed")
    seal(Path("changed"), folder)
    capsys.readouterr()
    assert run("ckpt", "verify", "run") == 1
    assert name in capsys.readouterr().out
    assert run("ckpt", "export", "run", "out", "--merge-lora") == 2
    assert not Path("out").exists()
    assert run("ckpt", "export", "run", "out", "--merge-lora", "--step", "1") == 0
    assert (Path("out") / "README.md").is_file()
