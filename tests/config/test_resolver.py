"""Which source wins, what is told, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlcli.config.resolved import with_values
from rlcli.config.schema import defaults
from rlcli.errors import ConfigError


def test_each_source_beats_the_one_below(run: Any) -> None:
    file = "rollout:\n  n: 3\n"
    steps: list[tuple[dict[str, Any], int, str]] = [
        ({}, 1, "default"),
        ({"algo": "rloo"}, 5, "preset rloo"),
        ({"algo": "rloo", "preset": "quickstart"}, 8, "recipe quickstart"),
        ({"algo": "rloo", "preset": "quickstart", "file": file}, 3, "file x.yaml"),
        ({"algo": "rloo", "file": file, "env": {"ROLLOUT_N": "6"}}, 6, "env ROLLOUT_N"),
    ]
    for arguments, n, origin in steps:
        resolved = run(**arguments)
        assert (resolved.config.rollout.n, resolved.sources["rollout.n"]) == (n, origin)
    resolved = run("rollout.n=8", file=file, env={"ROLLOUT_N": "6"})
    assert resolved.config.rollout.n == 8
    assert resolved.sources["rollout.n"] == "override rollout.n=8"


def test_every_setting_has_an_origin(run: Any) -> None:
    assert set(run().sources) == set(defaults())


def test_only_what_the_user_said_is_explicit(run: Any) -> None:
    resolved = run("train.lr=1e-5", algo="rloo", env={"GAE_GAMMA": "0.9"})
    assert resolved.explicit == {"train.lr", "algorithm.gamma", "algorithm.name"}
    assert run().explicit == set()


def test_a_flag_beats_a_key_value_and_says_so(run: Any) -> None:
    resolved = run("train.lr=3e-6", flags={"lr": 1e-5})
    assert resolved.config.train.lr == 1e-5
    assert resolved.notes == ["flag --lr 1e-05 beats train.lr=3e-6."]


def test_among_repeats_the_last_wins(run: Any, tmp_path: Path) -> None:
    assert run("rollout.n=2", "actor_rollout_ref.rollout.n=4").config.rollout.n == 4
    (tmp_path / "a.yaml").write_text("rollout.n: 2")
    (tmp_path / "b.yaml").write_text("rollout.n: 4")
    assert run(files=[Path("a.yaml"), Path("b.yaml")]).config.rollout.n == 4


def test_an_empty_variable_is_unset(run: Any) -> None:
    resolved = run(env={"MODEL_PATH": "", "CLIP_RATIO": " ", "REWARD_MODEL_PATH": ""})
    assert resolved.sources["model.path"] == "default"
    assert resolved.explicit == set()


def test_all_variables_of_the_guides_are_read(run: Any) -> None:
    env = {
        "MODEL_PATH": "some/model",
        "CLIP_RATIO": "0.3",
        "GAE_GAMMA": "0.99",
        "GAE_LAMBDA": "0.9",
        "KL_COEF": "0.01",
        "PPO_EPOCHS": "2",
        "CRITIC_LR": "2e-5",
        "CRITIC_EPOCHS": "3",
        "CLIPRANGE_VALUE": "0.4",
        "ROLLOUT_N": "2",
        "ROLLOUT_TEMPERATURE": "0.8",
        "ROLLOUT_TP_SIZE": "2",
        "GPU_MEMORY_UTILIZATION": "0.5",
        "N_GPUS": "8",
        "NNODES": "2",
    }
    resolved = run(env=env)
    config = resolved.config
    assert config.model.path == "some/model"
    assert config.algorithm.clip_bounds == (0.3, 0.3)
    assert (config.algorithm.gamma, config.algorithm.lam, config.algorithm.kl_coef) == (
        0.99,
        0.9,
        0.01,
    )
    assert (config.train.ppo_epochs, config.critic.lr, config.critic.epochs) == (2, 2e-5, 3)
    assert (config.critic.cliprange_value, config.rollout.n) == (0.4, 2)
    assert config.rollout.temperature == 0.8
    assert (config.rollout.tensor_parallel, config.rollout.memory_fraction) == (2, 0.5)
    assert (config.train.n_gpus, config.train.nnodes) == (8, 2)


def test_a_reward_model_may_come_from_the_environment(run: Any) -> None:
    resolved = run(env={"REWARD_MODEL_PATH": "some/rm"})
    assert resolved.config.reward.model == "some/rm"
    assert resolved.sources["reward.model"] == "env REWARD_MODEL_PATH"


def test_values_take_the_form_their_setting_wants(run: Any) -> None:
    config = run(
        "data.train_files=['$HOME/a.parquet', 'b.json']",
        "data.val=c.jsonl",
        "run.name=20240101",
        "lora.targets=[q_proj,v_proj]",
        "data.fields.prompt=question",
        "data.fields={ground_truth: answer}",
        "reward.weights.accuracy=0.7",
        "algorithm.gamma=0.99 # discount",
        "run.resume=20",
        env={"HOME": "/home/ann"},
    ).config
    assert config.data.train == ["/home/ann/a.parquet", "b.json"]
    assert config.data.val == ["c.jsonl"]
    assert (config.run.name, config.run.resume) == ("20240101", "20")
    assert config.lora.targets == ["q_proj", "v_proj"]
    assert config.data.fields == {"prompt": "question", "ground_truth": "answer"}
    assert config.reward.weights == {"accuracy": 0.7}
    assert config.algorithm.gamma == 0.99


def test_flags_may_be_text_and_not_given(run: Any) -> None:
    flags = {"lr": "5e-7", "epochs": "20", "data": ["a", "b"], "run_name": "exp #1", "seed": None}
    config = run(flags=flags).config
    assert (config.train.lr, config.train.epochs, config.run.name) == (5e-7, 20, "exp #1")
    assert (config.data.train, config.run.seed) == (["a", "b"], 0)
    assert run(flags={"data": "['a','b']"}).config.data.train == ["a", "b"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr=abc", ["train.lr = 'abc'", "from override train.lr=abc", "valid number"]),
        ("rollout.n=0", ["rollout.n = 0", "greater than or equal to 1"]),
        ("rollout.n=true", ["rollout.n = True", "expected a number"]),
        ("rollout.n=1.5", ["rollout.n = 1.5", "integer"]),
        ("train.lr=nan", ["train.lr", "finite"]),
        ("algorithm.gamma=inf", ["algorithm.gamma", "less than or equal to 1"]),
        ("model.dtype=float16", ["model.dtype", "'auto', 'float32' or 'bfloat16'"]),
        ("algorithm.kl_penalty=full", ["algorithm.kl_reward_type = 'full'"]),
        ("data.train={a: 1}", ["data.train"]),
        ("model.path=a\0b", ["NUL"]),
        ("train.lr=", ["has no value"]),
        ("true", ["found 'true' by itself", "--use_api_reward"]),
        ("data.train=a\ud800b", ["data.train", "not UTF-8"]),
        ("train.lr='1e-6", ["train.lr", "Check quotes"]),
        ("train.lr=!!int x", ["train.lr"]),
        ("data.fields={a.b: 1, a: {b: 2}}", ["data.fields.a.b is there twice", "from override"]),
        ("rollout.n=" + "1" * 5000, ["rollout.n", "integer"]),
        ("=3", ["expected key=value"]),
        ("~train.lr=3", ["expected key=value"]),
    ],
)
def test_a_bad_value_names_key_value_expectation_and_origin(
    run: Any, override: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(override)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert len(str(caught.value)) < 600


def test_many_mistakes_take_three_lines(run: Any) -> None:
    with pytest.raises(ConfigError, match="and 2 more") as caught:
        run("rollout.n=0", "train.lr=x", "train.epochs=0", "critic.lr=x")
    assert len(str(caught.value).splitlines()) == 3


def test_an_empty_argument_is_explained(run: Any) -> None:
    assert "backslash" in run("rollout.n=2", " ").notes[0]


def test_resolving_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from rlcli.config.resolver import resolve\nfrom rlcli.setup.checks import check\n"
        "check(resolve(flags={}, overrides=['rollout.n=8'], files=[], env={}, algo='grpo'))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    env = {"PYTHONPATH": root, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True)
    assert not done.stderr.decode()


@pytest.mark.parametrize(
    "address", ["http://ann:hush@host:8000/v1", "//ann@host", "https://:hush@host", "${A}/v1"]
)
@pytest.mark.parametrize("key", ["reward.judge.base_url", "rollout.url", "reward.model"])
def test_an_address_with_a_password_is_refused_without_saying_it(
    run: Any, key: str, address: str
) -> None:
    env = {"A": "http://u:hush@host"}
    for arguments in ({"file": f"{key}: {address}\n"}, {"overrides": [f"{key}={address}"]}):
        overrides = arguments.pop("overrides", [])
        with pytest.raises(ConfigError, match="Remove what stands before the @") as caught:
            run(*overrides, env=env, **arguments)
        assert key in str(caught.value)
        assert "hush" not in str(caught.value)
    assert run("reward.model=http://host/a@b").config.reward.model == "http://host/a@b"


@pytest.mark.parametrize(
    "arguments",
    [{"flags": {"model": ""}}, {"flags": {"data": ["a", " "]}}, {"algo": ""}, {"preset": ""}],
)
def test_an_option_without_a_value_is_refused(run: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^--(model|data|algo|preset) has no value"):
        run(**arguments)
    assert run(flags={"rm_system_prompt": ""}).config.reward.judge.system_prompt == ""


def test_algo_is_also_a_setting_and_preset_only_an_option(run: Any) -> None:
    assert run("algo=rloo").config.algorithm.name == "rloo"
    assert run(file="algo: rloo\n").config.rollout.n == 5
    with pytest.raises(ConfigError, match="write --preset NAME"):
        run("preset=quickstart")


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        ("run.seed=18446744073709551616", "less than 9223372036854775808"),
        ("rollout.n=65537", "less than or equal to 65536"),
        ("train.epochs=1000000001", "less than or equal to 1000000000"),
        ("train.prompts_per_step=1000000000000", "less than or equal to 1000000000"),
        ("run.save_every=1000000000000", "less than or equal to 1000000000"),
    ],
)
def test_a_count_beyond_all_reason_names_the_limit(run: Any, setting: str, limit: str) -> None:
    with pytest.raises(ConfigError, match=limit):
        run(setting)


def test_a_value_that_had_to_shrink_keeps_its_author(run: Any) -> None:
    resolved = run("data.train_batch_size=512")
    smaller = with_values(resolved.config, {"train.prompts_per_step": 8})
    said = resolved.clamp_to_data(smaller).clamp_to_data(
        with_values(smaller, {"train.prompts_per_step": 4})
    )
    origin = said.sources["train.prompts_per_step"]
    assert origin == "override data.train_batch_size=512, shrunk to the data"
