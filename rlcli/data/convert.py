"""Public data sets to parquet files in verl's schema, so that they serve verl and us alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcli.data.boxed_answers import gold_box
from rlcli.data.files import find_files, iter_records, nearest
from rlcli.errors import DataError, DataNotFoundError
from rlcli.hub import Hub

Sample = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """How one public data set becomes ours.

    hub_repos: its name on each hub; hub_files: a pattern with a place for the split.
    """

    data_source: str
    ability: str
    columns: tuple[str, ...]
    splits: tuple[str, ...]
    hub_repos: Mapping[Hub, str]
    hub_files: str
    convert: Callable[[Mapping[str, Any]], Sample]


def convert(name: str, source: Path | None, local_dir: Path, *, hub: Hub = "hf") -> dict[str, Any]:
    """Writes `train.parquet` and `test.parquet`; returns what was written.

    source: a file (one split: the one its name says, else train), a folder with the splits of
    this data set, or None: the hub. The report: {"name", "data_source",
    "files": {split: {"path", "rows", "source"}}}.

    Raises:
        DataError: unknown name, or a row without an answer.
        DataNotFoundError: no source file, or the hub does not give one.
    """
    if name not in CONVERTERS:
        raise DataError(
            f"no data set {name!r} to prepare{nearest(name, list(CONVERTERS))}: "
            f"expected one of {', '.join(CONVERTERS)}."
        )
    converter = CONVERTERS[name]
    if source is None:
        files = {split: _download(converter, split, hub=hub) for split in converter.splits}
    else:
        files = _find_splits(name, converter, source)
    _make_folder(local_dir)
    report: dict[str, Any] = {"name": name, "data_source": converter.data_source, "files": {}}
    for split, paths in files.items():
        rows = _convert_files(converter, paths, split=split)
        target = local_dir / f"{split}.parquet"
        _write_parquet(rows, target)
        report["files"][split] = {
            "path": str(target),
            "rows": len(rows),
            "source": ", ".join(str(path) for path in paths),
        }
    return report


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--local_dir {folder} cannot be made: {error.strerror}.") from error


def _find_splits(name: str, converter: Converter, source: Path) -> dict[str, list[Path]]:
    if not source.exists():
        raise DataNotFoundError(
            f"--source {source} is not there; expected a file or a folder of {name}. Without "
            "--source it is downloaded from the hub."
        )
    if not source.is_dir():
        paths = find_files(str(source))
        split = next((s for s in ("test", "train") if s in paths[0].name.lower()), "train")
        return {split if split in converter.splits else converter.splits[0]: paths}
    found: dict[str, list[Path]] = {}
    for split in converter.splits:
        stems = [f"{name}_{split}", split] + (["HumanEval"] if name == "humaneval" else [])
        candidates = [source / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        path = next((path for path in candidates if path.is_file()), None)
        if path:
            found[split] = [path]
    if not found:
        expected = " or ".join(f"{name}_{split}.jsonl" for split in converter.splits)
        raise DataNotFoundError(
            f"--source {source} has no file of {name}: expected {expected} (also .json, .parquet)."
        )
    return found


def _download(converter: Converter, split: str, *, hub: Hub) -> list[Path]:
    pattern = converter.hub_files.format(split=split)
    try:
        return find_files(f"{hub}:{converter.hub_repos[hub]}/{pattern}")
    except DataNotFoundError as error:
        first = str(error).splitlines()[0]
        raise DataNotFoundError(
            f"{first}\nOr download it where there is a network, then add --source FILE_OR_FOLDER."
        ) from error


def _convert_files(converter: Converter, paths: list[Path], *, split: str) -> list[Sample]:
    rows: list[Sample] = []
    for path in paths:
        for number, record in iter_records(path):
            sample = _convert_record(converter, record, row_id=f"{path.name}:{number}")
            rows.append(_verl_row(converter, sample, split=split, index=len(rows)))
    if not rows:
        raise DataError(f"{paths[0].name} is empty: it has no rows.")
    return rows


def _convert_record(converter: Converter, record: Any, *, row_id: str) -> Sample:
    if isinstance(record, DataError):
        raise record
    columns = record if isinstance(record, dict) else {}
    missing = [name for name in converter.columns if not isinstance(columns.get(name), str)]
    if missing:
        raise DataError(
            f"{row_id}: no text in field {missing[0]!r}; a row of {converter.data_source} has "
            f"{', '.join(converter.columns)}. Is --source the right file?"
        )
    try:
        return converter.convert(columns)
    except ValueError as error:
        raise DataError(f"{row_id}: {error}. Repair or remove the row.") from error


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
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}.") from error
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
        hub_repos={"hf": "openai/gsm8k", "modelscope": "AI-ModelScope/gsm8k"},
        hub_files="main/{split}-*.parquet",
        convert=_gsm8k,
    ),
    "math": Converter(
        data_source="DigitalLearningGmbH/MATH-lighteval",
        ability="math",
        columns=("problem", "level", "type", "solution"),
        splits=("train", "test"),
        hub_repos={
            "hf": "DigitalLearningGmbH/MATH-lighteval",
            "modelscope": "AI-ModelScope/MATH-lighteval",
        },
        hub_files="data/{split}-*.parquet",
        convert=_math,
    ),
    "humaneval": Converter(
        data_source="openai/openai_humaneval",
        ability="code",
        columns=("task_id", "prompt", "entry_point", "canonical_solution", "test"),
        splits=("test",),
        hub_repos={"hf": "openai/openai_humaneval", "modelscope": "opencompass/humaneval"},
        hub_files="openai_humaneval/{split}-*.parquet",
        convert=_humaneval,
    ),
}
