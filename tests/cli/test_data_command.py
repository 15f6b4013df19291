"""`rlcli data` and `rlcli presets`: what they print and how they end."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from rlcli.cli.main import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rlcli", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_check_lists_every_bad_row_and_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "a", "ground_truth": "1", "data_source": "gsm8k"}
    file = write(
        tmp_path / "d.jsonl",
        good,
        {**good, "prompt": ""},
        {**good, "ground_truth": "many"},
        {**good, "ground_truth": None},
    )
    assert run(monkeypatch, "data", "check", file, "--json") == 2
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 2
    assert sorted(error.split(":")[1] for error in said["errors"]) == ["2", "3", "4"]


def test_check_of_a_good_file_exits_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "a", "ground_truth": "1", "data_source": "mine"}
    assert run(monkeypatch, "data", "check", write(tmp_path / "d.jsonl", row)) == 0
    assert "1 rows; data_source: mine" in capsys.readouterr().out


def test_show_prints_rows_as_they_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "data", "show", "builtin:sums", "-n", "1") == 0
    row = json.loads(capsys.readouterr().out)
    left, right = row["prompt"].removesuffix("=").split("+")
    assert row["ground_truth"] == str(int(left) + int(right))


def test_fields_name_the_columns_of_another_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "d.jsonl", {"question": "1+1?", "answer": {"value": 2}})
    fields = ("--field", "prompt=question", "--field", "ground_truth=answer.value")
    assert run(monkeypatch, "data", "check", file, *fields) == 0
    capsys.readouterr()
    assert run(monkeypatch, "data", "show", file, *fields, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["prompt"], row["ground_truth"]) == ("1+1?", 2)
    assert run(monkeypatch, "data", "check", file, "--field", "prompt") == 2
    assert "expected OURS=COLUMN" in capsys.readouterr().err


def test_tokens_counts_prompts_as_the_model_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The quickstart model reads bytes, and has no chat template: 1 byte is 1 token
    prompts = ["a" * length for length in range(1, 21)]
    file = write(tmp_path / "d.jsonl", *({"prompt": prompt} for prompt in prompts))
    tokens = ("--tokens", "builtin:quickstart")
    assert run(monkeypatch, "data", "check", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["tokens"] is None
    run(monkeypatch, "data", "check", file, *tokens, "--max_prompt_tokens", "15", "--json")
    report = json.loads(capsys.readouterr().out)
    assert len(report.pop("notes")) == 2
    assert report == {
        "rows": 20,
        "dropped": 0,
        "graded_by_a_rule": 0,
        "compared_as_text": [],
        "errors": [],
        "tokens": {"p50": 10, "p95": 19, "max": 20, "limit": 15, "over_limit": 5},
    }
    assert run(monkeypatch, "data", "check", file, *tokens) == 0
    assert "0 over data.max_prompt_tokens=512" in capsys.readouterr().out
    assert run(monkeypatch, "data", "show", file, "-n", "2", *tokens, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(row["asked"], row["tokens"]) for row in shown] == [("a", 1), ("aa", 2)]


def test_many_bad_rows_do_not_flood_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "d.jsonl", {"prompt": "a"}, *[{"prompt": ""}] * 50)
    assert run(monkeypatch, "data", "check", file) == 2
    lines = capsys.readouterr().out.splitlines()
    assert "50 rows cannot be read" in lines
    assert lines[-1] == "... and 30 more; --json lists all"
    assert sum(line.startswith("bad row: d.jsonl:") for line in lines) == 20


def test_a_missing_file_is_an_error_of_the_json_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "gsm8k" / "train.parquet")
    assert run(monkeypatch, "data", "check", missing, "--json") == 2
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["dropped"], said["tokens"]) == (0, 0, None)
    assert "rlcli data prepare gsm8k --local_dir" in said["errors"][0]
    assert run(monkeypatch, "data", "check", missing) == 2
    assert "rlcli data prepare gsm8k" in capsys.readouterr().err


def test_prepare_writes_where_the_guides_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "gsm8k_train.jsonl", {"question": "1+1?", "answer": "#### 2"})
    for arguments in (["--local_dir", "$HOME/data/gsm8k"], []):
        assert run(monkeypatch, "data", "prepare", "gsm8k", "--source", source, *arguments) == 0
        written = tmp_path / "data" / "gsm8k" / "train.parquet"
        assert f"train: 1 rows -> {written}" in capsys.readouterr().out
        assert run(monkeypatch, "data", "check", "$HOME/data/gsm8k/train.parquet") == 0
        written.unlink()
        capsys.readouterr()
    assert run(monkeypatch, "data", "prepare", "gsm8k", "--source", "none.jsonl") == 2
    assert "--source none.jsonl is not there" in capsys.readouterr().err


TEXTS = st.one_of(
    st.sampled_from(["", " ", "7", "gsm8k", "math", "user", "a\nb", "\ud800", "\x1b[2J", "计算"]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": TEXTS, "content": VALUES}, optional={"name": VALUES}),
    max_size=2,
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.one_of(TEXTS, MESSAGES, VALUES),
        "ground_truth": VALUES,
        "data_source": st.one_of(st.just("gsm8k"), VALUES),
        "reward_model": st.one_of(st.fixed_dictionaries({"ground_truth": VALUES}), VALUES),
        "extra_info": VALUES,
    },
)


def save(path: Path, rows: list[Any]) -> None:
    """Rows as they would stand in a file of this extension; hypothesis drops impossible ones."""
    if path.suffix == ".parquet":
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
            reject()
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))


def outcome(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0), out.getvalue()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.one_of(ROWS, VALUES), min_size=1, max_size=4),
    suffix=st.sampled_from([".json", ".jsonl", ".parquet"]),
)
def test_check_says_of_any_rows_which_are_bad_and_never_falls_over(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    if suffix == ".parquet":
        rows = [row for row in rows if isinstance(row, dict)] or [{"prompt": "a"}]
    save(path, rows)
    code, out = outcome("data", "check", str(path), "--json")
    said = json.loads(out)
    assert code == (2 if said["errors"] else 0)
    assert said["rows"] + said["dropped"] in (0, len(rows))
    for error in said["errors"]:
        assert error.startswith(path.name)
        assert error.isprintable()
    code_for_people, text = outcome("data", "check", str(path))
    assert code_for_people == code
    text.encode("utf-8")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=60),
    start=st.sampled_from([b"", b"PAR1", b"[", b'{"prompt": "a"}\n']),
    suffix=st.sampled_from([".json", ".jsonl", ".parquet", ".jsonl.gz"]),
)
def test_check_refuses_any_bytes_with_the_name_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes{suffix}"
    path.write_bytes(start + content)
    code, out = outcome("data", "check", str(path), "--json")
    errors = json.loads(out)["errors"]
    assert code == (2 if errors else 0)
    assert all(path.name in error and error.count("\n") < 3 for error in errors)


def test_presets_list_names_all_with_their_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "presets", "list", "--json") == 0
    kinds = {row["name"]: row["kind"] for row in json.loads(capsys.readouterr().out)}
    assert kinds["grpo"] == "algorithm"
    assert kinds["quickstart"] == "recipe"
    assert run(monkeypatch, "presets", "show", "dapo") == 0
    assert "dynamic_sampling: true" in capsys.readouterr().out


def test_an_unknown_preset_gets_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "presets", "show", "gpro") == 2
    assert "grpo" in capsys.readouterr().err


def test_check_and_show_read_rows_as_train_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"q": "1+1?", "c": "a", "gold": "2"}, {"q": "1+1?", "c": "a", "gold": "3"}]
    file = write(tmp_path / "d.jsonl", *rows)
    template = ("--prompt_template", "{c}\\n{q}", "--field", "ground_truth=gold")
    assert run(monkeypatch, "data", "check", file, *template) == 0
    assert "1 of 1 prompts have different reference answers" in capsys.readouterr().out
    assert run(monkeypatch, "data", "show", file, "-n", "1", *template, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["prompt"] == "a\n1+1?"
    answered = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    file = write(tmp_path / "m.jsonl", {"prompt": answered})
    assert run(monkeypatch, "data", "show", file, "--drop_last_assistant", "--json") == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["prompt"], shown["ground_truth"]) == (answered[:1], "2")


def test_check_names_its_options_for_settings_of_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "d.jsonl", {"a": 1, "b": 2})
    assert run(monkeypatch, "data", "check", file, "data.prompt_template={a}+{b}=") == 2
    assert "Use --field, --prompt-template" in capsys.readouterr().err
    assert run(monkeypatch, "data", "check", file) == 2
    assert "data.prompt_template=TEXT" in capsys.readouterr().out
