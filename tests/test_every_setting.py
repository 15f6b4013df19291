"""No silent switch: every setting, given another value, changes a run, is refused, or is listed.

`every_setting.txt` says what is tried. A setting without a row fails.
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from saved_models import save_tiny_model
from tiny_runs import StepView, tiny_run, write_inputs

from rlcli.config.schema import defaults
from rlcli.errors import UsageError

LISTED = {
    "model.hub": "needs a network",
    "rollout.tensor_parallel": "needs vLLM and several GPUs",
    "rollout.memory_fraction": "needs vLLM and a GPU",
    "train.zero_stage": "needs DeepSpeed",
    "train.offload_params": "needs an engine that shares states out",
    "train.offload_optimizer": "needs an engine that shares states out",
    "ref.offload_params": "needs a GPU",
    "reward.unsafe_code_execution": "needs a reward that runs code",
}
"""Settings that may be listed as not used instead: what this machine or version lacks."""


class Row(NamedTuple):
    key: str
    base: str
    value: str
    outcome: str

    @property
    def verdict(self) -> str:
        return self.outcome.partition(":")[0]

    @property
    def words(self) -> str:
        return self.outcome.partition(": ")[2]


ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("every_setting.txt").read_text(encoding="utf-8").splitlines()
ROWS = [
    Row(*(cell.strip() for cell in line.split("|")))
    for line in TABLE
    if line and not line.startswith("#")
]
TRIED = [row for row in ROWS if row.verdict != "test"]

BASES: dict[str, list[str]] = {
    "grpo": [],
    "dr_grpo": ["algorithm.name=dr_grpo"],
    "ppo": ["algorithm.name=ppo"],
    "adaptive": ["algorithm.name=ppo", "algorithm.kl_controller=adaptive", "train.max_steps=3"],
    "sapo": ["algorithm.name=sapo"],
    "clip_cov": ["algorithm.name=clip_cov", "algorithm.clip_cov_ratio=0.5",
                 "algorithm.clip_cov_low=0.0"],
    "kl_cov": ["algorithm.name=kl_cov", "algorithm.kl_cov_ratio=0.2"],
    "dro": ["algorithm.loss=dro", "algorithm.dro_beta=0.1"],
    "coarse": ["reward.fn={folder}/reward.py:coarse", "rollout.n=2"],
    "overlong": ["algorithm.overlong_penalty=true"],
    "printing": ["reward.fn={folder}/reward.py:printing", "data.val=[]"],
    "dapo": ["algorithm.name=dapo", "reward.fn={folder}/reward.py:coarse", "rollout.n=2"],
    "corrected": ["algorithm.correction=token"],
    "rejecting": ["algorithm.rejection=seq_k1", "model.dtype=bfloat16"],
    "bfloat16": ["model.dtype=bfloat16"],
    "lora": ["lora.rank=2"],
    "kl": ["algorithm.kl_loss=true"],
    "cut": ["data.max_prompt_tokens=8", "data.truncation=left"],
    "sampled_val": ["rollout.val_temperature=1.0"],
    "one_epoch": ["train.max_steps=null", "train.epochs=1"],
    "rows": ["train.micro_batch_size=2", "train.dynamic_batch=false"],
    "parts": ["algorithm.advantage=gdpo", "reward.fn={folder}/reward.py:parts",
              "reward.weights={a: 1.0, b: 0.5}"],
    "named": ["run.output_dir=null", "run.name=one"],
    "saving": ["run.save_every=1", "run.keep_checkpoints=3", "data.val=[]"],
}  # fmt: skip
OFTEN = ("grpo", "ppo", "lora")
"""Bases whose settings are tried in every run of the tests; the other rows are nightly."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data and rewards."""
    made = tmp_path_factory.mktemp("every")
    size = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    save_tiny_model(made / "model", "Qwen2", **size)
    save_tiny_model(made / "other", "Qwen2", **{**size, "intermediate_size": 32})
    write_inputs(made)
    return made


def overrides(folder: Path, base: str, *more: str) -> list[str]:
    small = [
        "algorithm.name=grpo", "model.path={folder}/model", "model.dtype=float32",
        "data.train={folder}/a.jsonl", "data.val={folder}/a.jsonl", "data.max_prompt_tokens=40",
        "data.max_response_tokens=6", "rollout.n=4", "train.lr=1e-2", "train.prompts_per_step=4",
        "train.mini_batch_prompts=2", "train.max_steps=2", "train.ppo_epochs=2",
        "critic.lr=1e-2", "train.device=cpu", "reward.fn={folder}/reward.py:compute_score",
    ]  # fmt: skip
    given = [*small, *BASES[base], *more]
    return [text.replace("{folder}", str(folder)) for text in given]


@pytest.fixture(scope="module")
def baseline(folder: Path) -> Any:
    """The run of a base, made once."""
    made: dict[str, StepView] = {}

    def call(base: str) -> StepView:
        if base not in made:
            made[base] = tiny_run(folder, f"base-{base}", overrides(folder, base))
        return made[base]

    return call


def test_every_setting_is_in_the_table() -> None:
    keys = [row.key for row in ROWS]
    assert sorted(keys) == sorted(defaults())
    print(f"{len(TRIED)} settings tried on {len(BASES)} runs, {len(ROWS) - len(TRIED)} elsewhere")


@pytest.mark.parametrize(
    "base",
    [name if name == "grpo" else pytest.param(name, marks=pytest.mark.nightly) for name in BASES],
)
def test_a_run_is_the_same_twice(base: str, folder: Path, baseline: Any) -> None:
    given = overrides(folder, base, *(["run.name=again"] if base == "named" else []))
    again = tiny_run(folder, f"again-{base}", given)
    assert again.differences(baseline(base)) == []


@pytest.mark.parametrize(
    "row",
    [row if row.base in OFTEN else pytest.param(row, marks=pytest.mark.nightly) for row in TRIED],
    ids=lambda row: row.key,
)
def test_a_setting_changes_the_run_or_is_refused_or_listed(
    row: Row, folder: Path, baseline: Any
) -> None:
    given = overrides(folder, row.base, f"{row.key}={row.value}")
    if row.verdict == "refused":
        with pytest.raises(UsageError) as refused:
            tiny_run(folder, row.key, given)
        assert row.words in str(refused.value)
        assert row.key in str(refused.value)
        return
    seen = tiny_run(folder, row.key, given)
    unused = [note for note in seen.notes if note.startswith("not used: ")]
    listed = [note for note in unused if row.key in note.partition("(")[0]]
    if row.verdict == "not used":
        assert row.key in LISTED
        assert len(listed) == 1
        assert row.words in listed[0]
        return
    assert not listed
    if row.verdict == "moves":
        assert seen.place.name == Path(row.value).name
        assert seen.differences(baseline(row.base)) == []
    else:
        assert row.verdict == "changes"
        assert seen.differences(baseline(row.base))


@pytest.mark.parametrize("row", [row for row in ROWS if row.verdict == "test"], ids=lambda r: r.key)
def test_the_test_of_a_setting_with_an_effect_elsewhere_exists(row: Row) -> None:
    path, _, name = row.words.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name in names


OWN_CODE = """\
from transformers import Qwen2Config, Qwen2ForCausalLM

class OwnConfig(Qwen2Config):
    model_type = "own_code"

class OwnModel(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_checkpoint_runs_only_when_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    model = tmp_path / "own_code"
    shutil.copytree(folder / "model", model)
    (model / "own.py").write_text(OWN_CODE)
    config = json.loads((model / "config.json").read_text())
    config["model_type"] = "own_code"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (model / "config.json").write_text(json.dumps(config))
    given = overrides(folder, "grpo", f"model.path={model}")
    with pytest.raises(UsageError, match="custom code"):
        tiny_run(folder, "own", given)
    assert tiny_run(folder, "own", [*given, "model.trust_remote_code=true"]).weights
