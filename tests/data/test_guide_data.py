"""Every way in which the guides name data, from the words they print to the rows that are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcli.config.resolver import resolve
from rlcli.data.convert import convert
from rlcli.data.readers import read_rows

FILE = """
data:
  train_files:
    - $HOME/data/gsm8k/train.parquet
    - $HOME/data/math/train.parquet
  val_files: $HOME/data/gsm8k/test.parquet
  train_batch_size: 1024
  max_prompt_length: 1024          # 支持更长的提示词
  filter_overlong_prompts: True
  truncation: 'error'
"""
ROW = '[{"prompt": "计算 15 + 27 的结果", "ground_truth": "42", "data_source": "math_reasoning"}]'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$HOME with the files that the guides' data_preprocess scripts write."""
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = {
        "gsm8k": {"question": "How many?", "answer": "#### 1,500"},
        "math": {"problem": "p", "level": "1", "type": "t", "solution": r"$\boxed{7}$"},
    }
    for name, row in rows.items():
        for split in ("train", "test"):
            source = tmp_path / f"{name}_{split}.jsonl"
            source.write_text(json.dumps(row))
            convert(name, source, tmp_path / "data" / name)
    return tmp_path


def golds(home: Path, *overrides: str, files: tuple[str, ...] = ()) -> list[tuple[str, object]]:
    """(data source, ground truth) of the training rows and then of those to evaluate on."""
    resolved = resolve(
        overrides=overrides,
        flags={},
        files=[Path(name) for name in files],
        env={"HOME": str(home)},
        cwd=home,
    )
    data = resolved.config.data
    rows = read_rows([*data.train, *data.val], fields=data.fields)
    return [(row.data_source, row.ground_truth) for row in rows]


MATH = ("DigitalLearningGmbH/MATH-lighteval", "7")
WORD = ("openai/gsm8k", "1500")


def test_home_and_single_files(home: Path) -> None:
    train, val = "$HOME/data/gsm8k/train.parquet", "$HOME/data/math/test.parquet"
    assert golds(home, f"data.train_files={train}", f"data.val_files={val}") == [WORD, MATH]


def test_a_list_in_one_shell_word(home: Path) -> None:
    both = f"['{home}/data/gsm8k/train.parquet', '{home}/data/math/train.parquet']"
    assert golds(home, f"data.train_files={both}", "data.val_files=[]") == [WORD, MATH]


def test_lists_in_a_file(home: Path) -> None:
    (home / "x.yaml").write_text(FILE, encoding="utf-8")
    assert golds(home, files=("x.yaml",)) == [WORD, MATH, WORD]


def test_the_row_that_the_ppo_guide_prints(home: Path) -> None:
    (home / "mine.json").write_text(ROW, encoding="utf-8")
    (row,) = read_rows([str(home / "mine.json")])
    assert (row.prompt, row.ground_truth, row.data_source) == (
        "计算 15 + 27 的结果",
        "42",
        "math_reasoning",
    )


def test_verls_keys_for_columns(home: Path) -> None:
    row = {"question": "q", "source": "gsm8k", "reward_model": {"ground_truth": "3"}}
    (home / "mine.jsonl").write_text(json.dumps(row))
    keys = ("data.prompt_key=question", "data.reward_fn_key=source", "data.val_files=[]")
    assert golds(home, f"data.train_files={home}/mine.jsonl", *keys) == [("gsm8k", "3")]
