"""Which sampler a run gets on which machine, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from rlcli.errors import ConfigError
from rlcli.setup.checks import resolve_sampler, sampler

CORRECTION = "algorithm.correction"


@pytest.fixture
def has_vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    def is_installed(version: str | None) -> None:
        monkeypatch.setattr(sampler, "installed_version", lambda: version)

    is_installed(None)
    return is_installed


def test_auto_is_native_without_a_gpu_and_nothing_is_said(checked: Any, has_vllm: Any) -> None:
    has_vllm("0.32.0")
    resolved = resolve_sampler(checked(), is_cuda=False)
    assert resolved.config.rollout.engine == "auto"
    assert resolved.config.algorithm.correction == "auto"
    assert not [note for note in resolved.notes if "sampler" in note or "vllm" in note]


def test_auto_is_vllm_on_a_gpu_where_it_is_installed(checked: Any, has_vllm: Any) -> None:
    has_vllm("0.26.0")
    resolved = resolve_sampler(checked(), is_cuda=True)
    assert resolved.config.rollout.engine == "vllm"
    assert resolved.config.algorithm.correction == "token"
    assert resolved.notes[-1] == (
        "rollout.engine=auto: vllm 0.26.0 samples, as it is installed and there is a GPU."
    )


@pytest.mark.parametrize(
    ("version", "settings", "why"),
    [
        (None, [], "vllm is not installed. It is faster on a GPU: pip install 'rlcli[vllm]'"),
        ("0.33.1", [], "vllm 0.33.1 is not one of 0.26 to 0.32."),
        ("0.25.0", [], "vllm 0.25.0 is not one of 0.26 to 0.32."),
        (
            "0.32.0",
            ["rollout.top_p=0.9", "rollout.temperature=0.7"],
            "log-probs after the cut only",
        ),
    ],
)
def test_auto_says_on_a_gpu_why_it_is_native(
    checked: Any, has_vllm: Any, version: str | None, settings: list[str], why: str
) -> None:
    has_vllm(version)
    resolved = resolve_sampler(checked(*settings), is_cuda=True)
    assert resolved.config.rollout.engine == "auto"
    assert why in resolved.notes[-1]


def test_without_a_gpu_the_guides_vllm_is_listed_and_the_run_goes_on(
    checked: Any, has_vllm: Any
) -> None:
    file = """\
actor_rollout_ref:
  rollout:
    name: vllm
    tensor_model_parallel_size: 2
    gpu_memory_utilization: 0.6
    n: 5
"""
    resolved = resolve_sampler(checked(file=file, algo="remax"), is_cuda=False)
    assert resolved.config.rollout.engine == "native"
    assert resolved.notes[1:] == [
        "not used: rollout.engine, rollout.memory_fraction, rollout.tensor_parallel "
        "(vllm is not installed; the native sampler samples)."
    ]
    has_vllm("0.32.0")
    resolved = resolve_sampler(checked(file=file, algo="remax"), is_cuda=False)
    assert resolved.config.rollout.engine == "vllm"
    assert not [note for note in resolved.notes if "not used" in note]


@pytest.mark.parametrize(
    ("version", "is_cuda", "words"),
    [
        (None, True, r"not installed.*pip install 'rlcli\[vllm\]'"),
        ("0.33.0", False, r"needs vllm 0\.26 to 0\.32, and 0\.33\.0.*install_vllm_cpu\.sh"),
        ("0.9.2", True, r"needs vllm 0\.26 to 0\.32, and 0\.9\.2"),
    ],
)
def test_vllm_that_is_asked_for_and_is_not_there_is_refused(
    checked: Any, has_vllm: Any, version: str | None, is_cuda: bool, words: str
) -> None:
    has_vllm(version)
    with pytest.raises(ConfigError, match=rf"(?s){words}") as refused:
        resolve_sampler(checked("rollout.engine=vllm"), is_cuda=is_cuda)
    assert "rollout.engine=native" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("settings", "correction"),
    [
        ([], "token"),
        ([f"{CORRECTION}=sequence"], "sequence"),
        ([f"{CORRECTION}=off"], "off"),
        (["algorithm.use_rollout_logprobs=true"], "off"),
        (["rollout.top_p=0.9"], "off"),
        (["rollout.top_k=20"], "off"),
    ],
)
def test_rollouts_of_vllm_are_corrected_for_where_that_is_right(
    checked: Any, has_vllm: Any, settings: list[str], correction: str
) -> None:
    has_vllm("0.32.0")
    resolved = resolve_sampler(checked("rollout.engine=vllm", *settings), is_cuda=False)
    assert resolved.config.algorithm.correction == correction


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["rollout.top_k=20", "rollout.temperature=0.7"], r"log-probs after the cut only"),
        (["env.tools=builtin:lookup", "rollout.tensor_parallel=2"], r"tensor_parallel=2 .*wait"),
        (["lora.rank=600"], r"lora\.rank=600 .*up to rank 512"),
        (["lora.rank=4", "lora.targets=[q_proj,embed_tokens]"], r"linear layers inside the model"),
    ],
)
def test_what_vllm_cannot_sample_for_is_refused(
    checked: Any, has_vllm: Any, settings: list[str], words: str
) -> None:
    has_vllm("0.32.0")
    with pytest.raises(ConfigError, match=rf"(?s){words}.*Leave .*rollout\.engine=native"):
        resolve_sampler(checked("rollout.engine=vllm", *settings), is_cuda=False)
    resolved = resolve_sampler(checked(*settings), is_cuda=True)
    assert resolved.config.rollout.engine == "auto"
    assert "the native sampler samples, as" in resolved.notes[-1]


def test_top_p_with_a_correction_is_refused(checked: Any) -> None:
    with pytest.raises(ConfigError, match=r"samples from a part of it"):
        checked("rollout.engine=vllm", "rollout.top_p=0.9", f"{CORRECTION}=token")
