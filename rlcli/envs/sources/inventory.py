"""What a Python has of the libraries of environments, as JSON on standard output.

Runs as `python -m rlcli.envs.sources.inventory [PREFIX]` in the Python that is asked about.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import sys
from typing import Any

from rlcli.envs.sources import SOURCES, EnvLoadError, Source, import_source


def main() -> None:
    """Print which libraries are installed, or with a prefix also the names of its environments."""
    wanted = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):  # libraries print when they are imported
        found = {source.prefix: _facts(source) for source in SOURCES.values()}
        for prefix in wanted:
            found[prefix] |= _names(SOURCES[prefix])
    print(json.dumps(found))


def _facts(source: Source) -> dict[str, Any]:
    is_installed = importlib.util.find_spec(source.package) is not None
    version = None
    if is_installed:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(source.package.replace("_", "-"))
    install = None if is_installed else source.install
    return {"is_installed": is_installed, "version": version, "install": install}


def _names(source: Source) -> dict[str, Any]:
    try:
        return {"names": import_source(source).names()}
    except EnvLoadError as error:
        return {"names": [], "error": str(error)}


if __name__ == "__main__":
    main()
