"""Whatever is typed, the outcome is a run's configuration or three lines that name the culprit."""

from __future__ import annotations

import io
import os
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from fuzz_cases import Case, command_lines, files, flags, overrides, variables
from hypothesis import HealthCheck, given, settings

from rlcli.cli.main import main
from rlcli.config.resolver import resolve
from rlcli.errors import UsageError
from rlcli.setup.checks import check

MAX_MESSAGE = 1500
STEADY = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
DEEP = settings(STEADY, derandomize=False, max_examples=10_000)


def message_of(case: Case, folder: Path) -> str | None:
    """What is said of a refusal; None for a configuration."""
    arguments: dict[str, Any] = {"flags": {}, "overrides": [], "files": [], "env": {}}
    text = case.arguments.get("text")
    if text is not None:
        (folder / "x.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    more = {key: value for key, value in case.arguments.items() if key != "text"}
    try:
        check(resolve(**{**arguments, **more}, cwd=folder))
    except UsageError as error:
        return str(error)
    return None


def check_message(message: str, case: Case) -> None:
    assert message.strip()
    assert len(message.splitlines()) <= 3, message
    assert len(message) <= MAX_MESSAGE, message
    names = [name if name.isprintable() else "" for name in case.culprits]
    assert any(name[:60] in message for name in names), message


def check_case(case: Case, folder: Path) -> None:
    message = message_of(case, folder)
    if message is not None:
        check_message(message, case)


@pytest.mark.slow
@given(case=overrides())
@settings(STEADY, max_examples=150)
def test_a_spoilt_command_is_read_or_names_the_argument(case: Case, tmp_path: Path) -> None:
    check_case(case, tmp_path)


@given(case=variables())
@settings(STEADY, max_examples=50)
def test_any_value_of_a_variable_is_read_or_names_the_variable(case: Case, tmp_path: Path) -> None:
    check_case(case, tmp_path)


@given(case=flags())
@settings(STEADY, max_examples=50)
def test_any_value_of_an_option_is_read_or_names_the_option(case: Case, tmp_path: Path) -> None:
    check_case(case, tmp_path)


@given(case=files())
@settings(STEADY, max_examples=100)
def test_a_spoilt_file_is_read_or_named(case: Case, tmp_path: Path) -> None:
    check_case(case, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [overrides, variables, flags, files])
def test_ten_thousand_others_are_read_or_named(kind: Any, tmp_path: Path) -> None:
    DEEP(given(case=kind())(check_case_in(tmp_path)))()


def check_case_in(folder: Path) -> Any:
    def call(case: Case) -> None:
        check_case(case, folder)

    return call


@given(case=command_lines())
@settings(STEADY, max_examples=15)
def test_the_command_itself_ends_well_or_names_the_argument(case: Case, tmp_path: Path) -> None:
    check_command(case, tmp_path)


@pytest.mark.nightly
@given(case=command_lines())
@settings(DEEP, max_examples=1000)
def test_a_thousand_other_commands_end_well(case: Case, tmp_path: Path) -> None:
    check_command(case, tmp_path)


def check_command(case: Case, tmp_path: Path) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    home = {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with chdir(tmp_path), redirect_stdout(out), redirect_stderr(err), patch.dict(os.environ, home):
        with pytest.raises(SystemExit) as ended:
            main(["train", "--dry_run", *case.arguments["words"]])
        out.flush()
        err.flush()
    said = err.buffer.getvalue().decode()
    assert ended.value.code in (0, 2)
    if ended.value.code == 2:
        check_message(said.removeprefix("error: "), case)
