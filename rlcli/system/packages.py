"""Versions of installed packages, read from their metadata without importing them."""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rlcli import __version__

TORCH_FAMILY = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True)
class Package:
    """`build`: cpu, cu130, ... if the package states it. `requires`: as in its metadata."""

    version: str
    build: str | None = None
    requires: tuple[str, ...] = ()

    @property
    def full_version(self) -> str:
        """2.13.0+cu130, even if the metadata has only 2.13.0."""
        has_build = self.build is None or "+" in self.version
        return self.version if has_build else f"{self.version}+{self.build}"


def versions_of(packages: Collection[str]) -> dict[str, str]:
    """Versions of rlcli, Python and these packages, by name."""
    here = installed(packages)
    found = {"rlcli": __version__, "python": platform.python_version()}
    for name in packages:
        package = here.get(name)
        found[name] = package.full_version if package else "not installed"
    return found


def installed(names: Iterable[str]) -> dict[str, Package]:
    """The installed packages among `names`."""
    found = {}
    for name in names:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = Package(
            version=distribution.version,
            build=_build(distribution, name) if name in ("torch", *TORCH_FAMILY) else None,
            requires=tuple(distribution.requires or ()),
        )
    return found


def _build(distribution: metadata.Distribution, name: str) -> str | None:
    """The part after + in NAME/version.py, which PyPI's file names and metadata omit."""
    try:
        text = Path(str(distribution.locate_file(f"{name}/version.py"))).read_text("utf-8")
    except OSError:
        return None
    tag = re.search(r"__version__ = ['\"][^'\"+]+\+([\w.]+)", text)
    return tag[1] if tag else None
