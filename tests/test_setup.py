"""setup.sh with real pip on packages made here: which torch is installed, which one stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rlcli.doctor.packages import TORCH

ROOT = Path(__file__).resolve().parent.parent
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "demo"
version = "1"
dependencies = ["torch>=2.11", "alpha", "beta"]
"""
# an editable wheel is nothing but metadata here
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "demo-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        needs = "".join(f"Requires-Dist: {n}\\n" for n in ("torch>=2.11", "alpha", "beta"))
        wheel.writestr("demo-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: demo\\n"
                       "Version: 1\\n" + needs)
        wheel.writestr("demo-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\n"
                       "Root-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("demo-1.dist-info/RECORD", "")
    return name
"""
SET_UP = 'set -euo pipefail; . "$1/setup.sh"; rlcli_setup "$1" "$2"'
VERSIONS = """
import importlib.metadata as m, json
found = {}
for name in ("torch", "torchvision", "triton", "alpha", "beta"):
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps(found))
"""


def make_wheel(folder: Path, name: str, version: str, *needs: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    about = f"{name}-{version}.dist-info"
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{about}/METADATA", "\n".join(["Metadata-Version: 2.1", *lines, ""]))
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    return path


class Machine:
    """A checkout of a small project, the wheels to be had, and the packages of the system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "my checkout"
        (self.checkout / "scripts").mkdir(parents=True)
        (self.checkout / "requirements").mkdir()
        shutil.copy(ROOT / "setup.sh", self.checkout)
        shutil.copy(ROOT / "scripts" / "constraints.py", self.checkout / "scripts")
        (self.checkout / "pyproject.toml").write_text(PROJECT)
        (self.checkout / "backend.py").write_text(BACKEND)
        self.python = self.checkout / ".venv" / "bin" / "python"
        self.env = {
            "HOME": str(folder),
            "PATH": os.environ["PATH"],
            "PYTHON": sys.executable,
            "PYTHONUSERBASE": str(folder / "system"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(folder / "wheels"),
        }

    def publish(self, name: str, version: str, *needs: str) -> None:
        make_wheel(self.folder / "wheels", name, version, *needs)

    def lock(self, *pins: str) -> None:
        (self.checkout / "requirements" / "base.txt").write_text("\n".join(pins) + "\n")

    def install_on_system(self, name: str, version: str, *needs: str) -> None:
        """As `pip install --user` does: a --system-site-packages environment sees it."""
        wheel = make_wheel(self.folder / "system_wheels", name, version, *needs)
        packages = site.getusersitepackages().removeprefix(site.getuserbase()).lstrip("/")
        zipfile.ZipFile(wheel).extractall(self.folder / "system" / packages)

    def set_up(self, kind: str = "run", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", SET_UP, "bash", str(self.checkout), kind],
            env=self.env | env,
            capture_output=True,
            text=True,
        )

    def versions(self) -> dict[str, str]:
        ask = [str(self.python), "-c", VERSIONS]
        done = subprocess.run(ask, env=self.env, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    for version in ("2.12.0", "2.13.0", "2.14.0"):
        made.publish("torch", version, f"triton=={version}")
        made.publish("triton", version)
    for name in ("alpha", "beta"):
        for version in ("1.0", "2.0", "3.0"):
            made.publish(name, version)
    made.lock("torch==2.13.0", "triton==2.13.0", "alpha==1.0", "beta==1.0")
    return made


def test_a_system_torch_in_range_stays_with_what_it_needs(machine: Machine) -> None:
    machine.install_on_system("torch", "2.12.0", "triton==2.12.0")
    machine.install_on_system("triton", "2.12.0")
    machine.install_on_system("alpha", "3.0")
    own = machine.folder / "own constraints.txt"
    own.write_text("--no-binary=none\nbeta==2.0  # as the other tools here need it\n")
    done = machine.set_up(PIP_CONSTRAINT=own.as_uri())
    assert done.returncode == 0, done.stderr
    # the lock decides on everything else, except where the user does
    expected = {"torch": "2.12.0", "triton": "2.12.0", "alpha": "1.0", "beta": "2.0"}
    assert machine.versions() == expected


def test_an_old_system_torch_is_replaced_by_the_locks_and_a_new_lock_by_its_own(
    machine: Machine,
) -> None:
    machine.install_on_system("torch", "2.5.0")
    machine.install_on_system(
        "torchvision", "0.20.0", "torch==2.5.0"
    )  # breaks beside another torch
    done = machine.set_up()
    assert done.returncode == 0, done.stderr
    assert "torch 2.5.0 is outside of torch>=2.11" in done.stderr
    pinned = {"torch": "2.13.0", "triton": "2.13.0", "alpha": "1.0", "beta": "1.0"}
    assert machine.versions() == pinned

    offline = {"PIP_FIND_LINKS": "", "PIP_TIMEOUT": "1"}
    assert machine.set_up(**offline).returncode == 0  # nothing to do

    machine.lock("torch==2.14.0", "triton==2.14.0", "alpha==2.0", "beta==1.0")
    assert machine.set_up().returncode == 0
    renewed = {"torch": "2.14.0", "triton": "2.14.0", "alpha": "2.0", "beta": "1.0"}
    assert machine.versions() == renewed

    # put in by hand, for an older driver say
    by_hand = [str(machine.python), "-m", "pip", "install", "-q", "torch==2.12.0"]
    subprocess.run(by_hand, env=machine.env, check=True)
    machine.lock("torch==2.13.0", "triton==2.13.0", "alpha==3.0", "beta==1.0")
    assert machine.set_up().returncode == 0
    assert machine.versions() == {**renewed, "torch": "2.12.0", "triton": "2.12.0", "alpha": "3.0"}

    config = machine.checkout / ".venv" / "pyvenv.cfg"
    config.write_text(re.sub(r"(?m)^version = .*", "version = 3.8.2", config.read_text()))
    refused = machine.set_up()
    assert refused.returncode == 2
    assert "was made with Python 3.8" in refused.stderr


def test_the_locks_hold_the_torch_that_doctor_recommends() -> None:
    for name in ("base", "vllm", "vllm-cpu"):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        assert f"torch=={TORCH}" in lines
        assert not [line for line in lines if re.search(r"://|^-|@ ", line)]  # no index, no path
