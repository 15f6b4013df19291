"""Tensors on their way to files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from rlcli.engines.export import TensorFiles


def test_a_copy_keeps_what_training_changes(tmp_path: Path) -> None:
    weight, step = torch.arange(6.0).reshape(2, 3).T, torch.tensor(1.0)
    files = TensorFiles({"policy": {"w": weight, "step": step}, "critic": {"w": weight[0]}})
    # 6 + 1 + 2 numbers of four bytes
    assert files.num_bytes == 36
    copied = files.copied()
    weight += 10.0
    step += 1.0
    copied.save(tmp_path)
    assert copied.num_bytes == 0
    saved = load_file(tmp_path / "policy.safetensors")
    assert saved["w"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert saved["step"].item() == 1.0
    assert load_file(tmp_path / "critic.safetensors")["w"].tolist() == [0.0, 3.0]


def test_both_ways_give_the_same_bytes(tmp_path: Path) -> None:
    files = TensorFiles({"policy": {"b": torch.ones(3), "a": torch.zeros(2, 2).T}})
    for name, tensors in (("copied", files.copied()), ("as they are", files)):
        (tmp_path / name).mkdir()
        tensors.save(tmp_path / name)
    one, two = (path.read_bytes() for path in sorted(tmp_path.glob("*/policy.safetensors")))
    assert one == two
