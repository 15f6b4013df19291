"""Public data sets to parquet files in verl's schema, so that they serve verl and us alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcli.boxed import gold_box
from rlcli.data.files import find_file, iter_records, nearest
from rlcli.errors import DataError

Sample = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """How one public data set becomes ours. `hub_file` has a place for the split."""

    data_source: str
    ability: str
    columns: tuple[str, ...]
    splits: tuple[str, ...]
    hub_repo: str
    hub_file: str
    convert: Callable[[Mapping[str, Any]], Sample]


def convert(name: str, source: Path | None, local_dir: Path) -> dict[str, Any]:
    """Writes `train.parquet` and `test.parquet`; returns what was written.

    source: a file (one split: the one its name says, else train), a folder with the splits of
    this data set, or None: the Hugging Face hub. The report: {"name", "data_source",
    "files": {split: {"path", "rows", "source"}}}.

    Raises:
        DataError: unknown name, no source file, hub not reachable, or a row without an answer.
    """
    if name not in CONVERTERS:
        raise DataError(
            f"no data set {name!r} to prepare{nearest(name, list(CONVERTERS))}: "
            f"expected one of {', '.join(CONVERTERS)}."
        )
    converter = CONVERTERS[name]
    if source is None:
        files = {split: _download(converter, split) for split in converter.splits}
    else:
        files = _find_splits(name, converter, source)
    local_dir.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"name": name, "data_source": converter.data_source, "files": {}}
    for split, path in files.items():
        rows = _convert_file(converter, path, split=split)
        target = local_dir / f"{split}.parquet"
        _write_parquet(rows, target)
        report["files"][split] = {"path": str(target), "rows": len(rows), "source": str(path)}
    return report


def _find_splits(name: str, converter: Converter, source: Path) -> dict[str, Path]:
    if not source.is_dir():
        path = find_file(str(source))
        split = next((s for s in ("test", "train") if s in path.name.lower()), "train")
        return {split if split in converter.splits else converter.splits[0]: path}
    found: dict[str, Path] = {}
    for split in converter.splits:
        stems = [f"{name}_{split}", split] + (["HumanEval"] if name == "humaneval" else [])
        candidates = [source / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        path = next((path for path in candidates if path.is_file()), None)
        if path:
            found[split] = path
    if not found:
        expected = " or ".join(f"{name}_{split}.jsonl" for split in converter.splits)
        raise DataError(
            f"--source {source} has no file of {name}: expected {expected} (also .json, .parquet)."
        )
    return found


def _download(converter: Converter, split: str) -> Path:
    from huggingface_hub import hf_hub_download

    filename = converter.hub_file.format(split=split)
    try:
        return Path(hf_hub_download(converter.hub_repo, filename, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot get {filename} of {converter.hub_repo} from the Hugging Face hub: "
            f"{type(error).__name__}.\n"
            "Download it where there is a network, then add --source FILE_OR_FOLDER."
        ) from error


def _convert_file(converter: Converter, path: Path, *, split: str) -> list[Sample]:
    rows: list[Sample] = []
    for index, (number, record) in enumerate(iter_records(path)):
        row_id = f"{path.name}:{number}"
        if isinstance(record, DataError):
            raise record
        columns = record if isinstance(record, dict) else {}
        missing = [name for name in converter.columns if not isinstance(columns.get(name), str)]
        if missing:
            raise DataError(
                f"{row_id}: no text in field {missing[0]!r}; a row of {converter.hub_repo} has "
                f"{', '.join(converter.columns)}. Is --source the right file?"
            )
        try:
            sample = converter.convert(columns)
        except ValueError as error:
            raise DataError(f"{row_id}: {error}. Repair or remove the row.") from error
        rows.append(_verl_row(converter, sample, split=split, index=index))
    if not rows:
        raise DataError(f"{path.name} is empty: it has no rows.")
    return rows


def _verl_row(converter: Converter, sample: Sample, *, split: str, index: int) -> Sample:
    return {
        "data_source": converter.data_source,
        "prompt": [{"role": "user", "content": sample["prompt"]}],
        "ability": converter.ability,
        "reward_model": {"style": "rule", "ground_truth": sample["ground_truth"]},
        "extra_info": {"split": split, "index": index, **sample["extra_info"]},
    }


def _write_parquet(rows: list[Sample], target: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    partial = target.with_suffix(".partial")
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _gsm8k(columns: Mapping[str, Any]) -> Sample:
    question, answer = columns["question"], columns["answer"]
    _, mark, gold = answer.rpartition("####")
    if not mark or not gold.strip():
        raise ValueError("the answer does not end in '#### NUMBER'")
    return {
        "prompt": f"{question}\nThink it through step by step, and end with one line that has "
        'the answer, as a number alone, after "####".',
        "ground_truth": gold.strip().replace(",", ""),
        "extra_info": {"question": question, "answer": answer},
    }


def _math(columns: Mapping[str, Any]) -> Sample:
    gold = gold_box(columns["solution"])
    if not gold:
        raise ValueError("the solution has no \\boxed{} answer")
    return {
        "prompt": f"{columns['problem']}\nThink it through step by step, and put the final "
        "answer inside \\boxed{}.",
        "ground_truth": gold,
        "extra_info": {"level": columns["level"], "type": columns["type"]},
    }


def _humaneval(columns: Mapping[str, Any]) -> Sample:
    entry_point = columns["entry_point"]
    return {
        "prompt": "Complete this Python function. Answer with the whole function, imports "
        f"included, in one ```python block.\n\n```python\n{columns['prompt'].rstrip()}\n```",
        "ground_truth": f"{columns['test'].rstrip()}\n\ncheck({entry_point})\n",
        "extra_info": {
            "task_id": columns["task_id"],
            "entry_point": entry_point,
            "prefix": columns["prompt"],
            "canonical_solution": columns["canonical_solution"],
        },
    }


CONVERTERS: dict[str, Converter] = {
    "gsm8k": Converter(
        data_source="openai/gsm8k",
        ability="math",
        columns=("question", "answer"),
        splits=("train", "test"),
        hub_repo="openai/gsm8k",
        hub_file="main/{split}-00000-of-00001.parquet",
        convert=_gsm8k,
    ),
    "math": Converter(
        data_source="DigitalLearningGmbH/MATH-lighteval",
        ability="math",
        columns=("problem", "level", "type", "solution"),
        splits=("train", "test"),
        hub_repo="DigitalLearningGmbH/MATH-lighteval",
        hub_file="data/{split}-00000-of-00001.parquet",
        convert=_math,
    ),
    "humaneval": Converter(
        data_source="openai/openai_humaneval",
        ability="code",
        columns=("task_id", "prompt", "entry_point", "canonical_solution", "test"),
        splits=("test",),
        hub_repo="openai/openai_humaneval",
        hub_file="openai_humaneval/{split}-00000-of-00001.parquet",
        convert=_humaneval,
    ),
}
