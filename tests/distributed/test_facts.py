"""What nodes compare: what is in files, not what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcli.config.resolver import resolve
from rlcli.distributed import facts
from rlcli.distributed.facts import describe_data, describe_model, fingerprint, gather_facts


def facts_of(*overrides: str) -> dict[str, str]:
    resolved = resolve(flags={}, overrides=list(overrides), files=[], env={})
    return gather_facts(resolved, num_gpus=0)


def test_what_a_run_is_called_and_where_it_lies_is_no_fact() -> None:
    assert facts_of("run.output_dir=a", "run.name=b") == facts_of("run.output_dir=c")
    assert facts_of("run.seed=1") != facts_of("run.seed=2")


def test_one_process_may_be_said_or_meant() -> None:
    assert facts_of() == facts_of("train.n_gpus=1") != facts_of("train.n_gpus=2")


def test_a_long_setting_is_told_by_its_hash() -> None:
    words = "a long prompt " * 100
    one, two = (
        facts_of(f"reward.judge.system_prompt={words}{end}")["reward.judge.system_prompt"]
        for end in "xy"
    )
    assert one != two
    assert len(one) < 200


def test_data_is_known_by_its_content(tmp_path: Path) -> None:
    for name, text in (("a", "1\n"), ("b", "1\n"), ("c", "2\n")):
        (tmp_path / f"{name}.jsonl").write_text(text)
    a, b, c = (describe_data([str(tmp_path / f"{name}.jsonl")]) for name in "abc")
    assert a == b != c
    assert a.startswith("2 bytes, sha256 ")
    assert "nowhere.jsonl" in describe_data([str(tmp_path / "nowhere.jsonl")])


def test_a_large_file_is_known_by_pieces_of_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "WHOLE_FILE", 1000)
    monkeypatch.setattr(facts, "BLOCK", 10)
    monkeypatch.setattr(facts, "BLOCKS", 5)
    file = tmp_path / "large"
    data = bytearray(2000)
    file.write_bytes(data)
    before = fingerprint(file)
    for place, is_seen in ((0, True), (5, True), (1999, True), (995, True), (100, False)):
        changed = data.copy()
        changed[place] = 1
        file.write_bytes(changed)
        assert (fingerprint(file) != before) is is_seen, place
    file.write_bytes(bytes(2001))
    assert fingerprint(file) != before


def test_a_model_is_known_by_its_config_and_the_size_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    assert describe_model(tmp_path) == "config.json missing, weights of 5 bytes"
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    before = describe_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 9}))
    assert describe_model(tmp_path) != before
