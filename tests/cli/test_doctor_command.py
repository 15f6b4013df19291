"""`rlcli doctor` from outside: what it prints, what it leaves unsaid, how it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from rlcli.cli.doctor import read_nodes, report_lines
from rlcli.doctor.keys import KEYS
from rlcli.errors import ConfigError
from rlcli.system.finding import Finding

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys, typer
from rlcli.cli.doctor import doctor
from rlcli.errors import RlcliError
try:
    typer.run(doctor)
except RlcliError as error:
    sys.exit(error.exit_code)
finally:
    heavy = {"torch", "transformers", "openai", "anthropic", "wandb", "vllm"} & set(sys.modules)
    assert heavy <= ({"torch"} if "--nodes" in sys.argv else set()), heavy
"""


def start(*args: str, **env: str) -> subprocess.Popen[str]:
    names = {name for known in KEYS.values() for name in known}
    clean = {k: v for k, v in os.environ.items() if k not in names}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **env},
    )


def test_doctor_prints_80_columns_and_no_key() -> None:
    canaries = {name: f"canary-{name}" for names in KEYS.values() for name in names}
    process = start(**canaries)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert err == ""
    assert "canary" not in out
    assert "GEMINI_API_KEY and GOOGLE_API_KEY are set" in out
    assert out.splitlines()[0] == "packages"
    too_long = [text for text in out.splitlines() if len(text) > 80 and " " in text.strip()[60:]]
    assert too_long == []


def test_doctor_json_is_one_object() -> None:
    process = start("--json")
    out, _ = process.communicate()
    said = json.loads(out)
    assert said["ok"] is (process.returncode == 0) is True
    rows = {row["name"]: row for row in said["findings"]}
    assert rows["torch"].keys() == {"group", "name", "level", "says", "cure"}
    assert {row["level"] for row in said["findings"]} <= {"ok", "warn", "bad"}


def test_a_command_to_type_can_be_pasted_from_80_columns() -> None:
    cure = "/a/long/path/to/python -m pip uninstall torchvision torchaudio torchcodec and more"
    lines = report_lines({"packages": [Finding("x", "bad", "broken " * 20, f"{cure}\nls")]})
    assert all(len(text) <= 80 for text in lines)
    typed = [text for text in lines if text.lstrip().startswith("->") or text.endswith("more")]
    assert typed[0].endswith(" \\")
    assert typed[-1] == "     -> ls"


def node(rank: int, port: int, **env: str) -> subprocess.Popen[str]:
    where: Mapping[str, str] = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return start("--nodes", "--json", NODE_RANK=str(rank), **{**where, **env})


def test_two_processes_meet() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one = node(1, port)
    time.sleep(0.5)
    zero = node(0, port)
    said = [json.loads(process.communicate(timeout=120)[0]) for process in (zero, one)]
    assert (zero.returncode, one.returncode) == (0, 0), said
    assert said[0] == said[1]
    assert [row["name"] for row in said[0]["findings"]] == [
        "node 0", "node 1", "network",
    ]  # fmt: skip


@pytest.mark.parametrize(("rank", "address", "code"), [(5, "127.0.0.1", 2), (0, "192.0.2.1", 1)])
def test_nodes_exit_2_for_usage_and_1_for_a_failure(rank: int, address: str, code: int) -> None:
    process = node(rank, 29500, MASTER_ADDR=address)
    process.communicate(timeout=120)
    assert process.returncode == code


def env_of(**changes: str) -> dict[str, str]:
    return {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"} | changes


def test_the_doctor_reads_the_environment() -> None:
    found = read_nodes(env_of(NNODES="1:2"))
    assert (found.node_rank, found.nnodes, found.min_nodes) == (1, 2, 2)
    assert (found.master_addr, found.master_port) == ("10.0.0.1", 29500)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"NNODES": ""}, "NNODES"),
        ({"NNODES": "1", "NODE_RANK": "0"}, "NNODES"),
        ({"NNODES": "two"}, "NNODES"),
        ({"NODE_RANK": ""}, "NODE_RANK"),
        ({"NODE_RANK": "2"}, "NODE_RANK=2"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999"),
    ],
)
def test_an_environment_that_is_incomplete_or_wrong_is_refused(
    changes: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        read_nodes(env_of(**changes))
