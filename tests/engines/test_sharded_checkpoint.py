"""A state in shares: what is written, read by rows, refused, and given up."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlcli.engines import sharded_checkpoint
from rlcli.engines.sharded_checkpoint import ShareState, StateReader
from rlcli.run_dir.checkpoint import damage, holds_critic, seal

WHOLE = torch.arange(10.0).reshape(5, 2)


def share(rank: int, *, name: str = "policy.weight.w") -> ShareState:
    """Rows 0 to 2, or rows 3 and 4."""
    rows = WHOLE[:3] if rank == 0 else WHOLE[3:]
    tensors = {name: rows}
    if rank == 0:
        tensors["policy.step.w"] = torch.tensor(7.0)
    return ShareState(tensors, {name: (3 * rank, 5)}, rank=rank, size=2)


def test_rows_are_read_over_the_borders_of_shares(tmp_path: Path) -> None:
    assert share(1).copied().save(tmp_path) == {}
    known = share(0).save(tmp_path)
    assert sorted(known) == [f"share-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert torch.equal(load_file(tmp_path / sorted(known)[1])["policy.weight.w"], WHOLE[3:])
    with StateReader(tmp_path) as state:
        assert torch.equal(state["policy.weight.w"], WHOLE)
        assert torch.equal(state.rows("policy.weight.w", 2, 4), WHOLE[2:4])
        assert state.rows("policy.weight.w", 5, 5).shape == (0, 2)
        assert float(state["policy.step.w"]) == 7.0
        with pytest.raises(KeyError):
            state["policy.weight.other"]
    index = json.loads((tmp_path / "shares.json").read_text())["tensors"]["policy.weight.w"]
    assert (index["shape"], [part["start"] for part in index["parts"]]) == ([5, 2], [0, 3])


def test_files_of_the_torch_engine_are_read_by_rows_too(tmp_path: Path) -> None:
    save_file({"policy.weight.w": WHOLE}, tmp_path / "policy.safetensors")
    with StateReader(tmp_path) as state:
        assert torch.equal(state.rows("policy.weight.w", 1, 4), WHOLE[1:4])
    assert not holds_critic(tmp_path)


def test_hashes_of_the_ranks_go_into_the_manifest_and_a_changed_share_is_found(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "part"
    share(1, name="critic.weight.w").save(folder)
    seal(folder, tmp_path / "step_1", share(0, name="critic.weight.w").save(folder))
    assert damage(tmp_path / "step_1") is None
    assert holds_critic(tmp_path / "step_1")
    file = tmp_path / "step_1" / "share-00002-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "share-00002-of-00002.safetensors was changed" in str(damage(tmp_path / "step_1"))


def test_a_share_that_does_not_come_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded_checkpoint, "SILENT_S", 0.2)
    with pytest.raises(OSError, match=r"share-00002-of-00002\.safetensors has not appeared"):
        share(0).save(tmp_path)
    assert not (tmp_path / "shares.json").exists()


def test_a_full_disk_of_another_rank_is_a_full_disk(tmp_path: Path) -> None:
    full = share(1)

    def write(file: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    full._write = write  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="No space"):
        full.save(tmp_path)
    with pytest.raises(OSError, match="No space") as raised:
        share(0).save(tmp_path)
    assert raised.value.errno == errno.ENOSPC
