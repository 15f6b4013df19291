"""What the package ships: small, honest about what was held out, and reproducible."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ASSETS = Path(__file__).resolve().parents[2] / "rlcli" / "assets"


def rows(name: str) -> list[dict[str, str]]:
    text = (ASSETS / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def test_the_model_is_small_and_bfloat16() -> None:
    folder = ASSETS / "quickstart"
    tensors = load_file(folder / "model.safetensors")
    assert sum(t.numel() for t in tensors.values()) <= 2_000_000
    assert {str(t.dtype) for t in tensors.values()} == {"torch.bfloat16"}
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 4 * 2**20


def test_held_out_sums_are_never_trained_on_and_all_answers_are_right() -> None:
    train, val = rows("sums/train.jsonl"), rows("sums/val.jsonl")
    assert (len(train), len(val)) == (800, 200)
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in val}
    for row in [*train, *val]:
        left, right = row["prompt"].removesuffix("=").split("+")
        assert int(row["ground_truth"]) == int(left) + int(right)


def test_the_math_questions_have_the_guides_form_and_no_duplicates() -> None:
    train, val = rows("math_reasoning.json"), rows("math_reasoning_val.json")
    for row in [*train, *val]:
        assert row.keys() == {"prompt", "ground_truth", "data_source"}
        assert row["data_source"] == "math_reasoning"
        int(row["ground_truth"])
    prompts = [r["prompt"] for r in [*train, *val]]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.nightly
def test_the_script_makes_the_same_files_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlcli.assets.make_quickstart", "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ASSETS.parents[1])
    for made in tmp_path.rglob("*.json*"):
        assert filecmp.cmp(made, ASSETS / made.relative_to(tmp_path), shallow=False), made.name
