"""A task set of verifiers 0.4 through `--env verifiers:NAME`, where a Python has the package.

RLCLI_VERIFIERS_PYTHON names that Python: `python3 -m venv vf && vf/bin/pip install
verifiers==0.4.0 uv`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_templates import QWEN

from rlcli.cli.main import main
from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.envs.agent_run import find_agent

PYTHON = os.environ.get("RLCLI_VERIFIERS_PYTHON", "")
FAKE = '''\
"""Stands in for verifiers.v1, as far as the number of tasks goes."""
class Env:
    def __init__(self, config):
        self.taskset = range(config["taskset"]["num"])

class Type:
    @staticmethod
    def model_validate(settings):
        assert settings["player"] == {"harness": {"id": "null"}}, settings
        return settings

def env_config_type(name):
    return Type

load_environment = Env
'''
TASKS = """\
import verifiers.v1 as vf


class Data(vf.TaskData):
    secret: int


class OneTask(vf.Task[Data]):
    pass


class Config(vf.TasksetConfig):
    pass


class EnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class GuessEnv(vf.Env[EnvConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as interaction:
            await interaction.turn()
            segment = await interaction.turn("again")
        interaction.trace.record_reward("found", float(len(segment.last_reply or "")), 1.0)


class GuessTaskset(vf.Taskset[OneTask, Config]):
    def load(self):
        return [OneTask(Data(prompt="Guess.", secret=s), self.config.task) for s in (3, 8)]


__all__ = ["GuessEnv", "GuessTaskset"]
"""


def save_model(folder: Path) -> None:
    """A random model whose tokenizer has Qwen's marks, byte by byte."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    more = ["tool_call", "tool_response", "think"]
    pairs = [mark for name in more for mark in (f"<{name}>", f"</{name}>")]
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in pairs])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = QWEN
    fast.save_pretrained(folder)
    # as in Qwen's own: the class's default unk_token would make renderers miss <|endoftext|>
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
    file.write_text(json.dumps(settings | {"unk_token": None}))
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    ids = {"vocab_size": 288, "eos_token_id": 258, "pad_token_id": 256, "bos_token_id": None}
    Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, **ids)).save_pretrained(folder)


def test_the_tasks_of_a_task_set_are_counted_and_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "verifiers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "v1.py").write_text(FAKE)
    monkeypatch.chdir(tmp_path)
    args = {"taskset.num": 30, "player.harness.id": "null"}
    values = {"env.path": "verifiers:mine", "env.python": sys.executable, "env.args": args}
    config = with_values(Config(), {**values, "env.tasks": 20, "env.val_tasks": 64})
    found = find_agent(config).rows(config)
    train = [row.extra_info["env_task"]["index"] for row in found.train]
    held_out = [row.extra_info["env_task"]["index"] for row in found.val]
    assert (train, held_out) == ([*range(20)], [*range(24, 30)])
    assert found.notes == ["4 of 30 tasks are not used: env.tasks is 20."]


@pytest.mark.skipif(not PYTHON, reason="RLCLI_VERIFIERS_PYTHON names no Python with verifiers")
def test_a_task_set_of_verifiers_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "two_turns.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "tasks"))
    with pytest.raises(SystemExit) as left:
        main(
            [
                "train", "--algo", "grpo", "--model", "model", "--env", "verifiers:two-turns",
                "--env_python", PYTHON, "env.args.renderer=qwen3", "model.dtype=float32",
                'env.args.player={harness: {id: "null"}, runtime: {type: subprocess}}',
                "train.prompts_per_step=2", "train.mini_batch_prompts=2", "rollout.n=2",
                "train.max_steps=2", "env.timeout_s=300", "env.max_turn_tokens=8",
                "data.max_prompt_tokens=400", "data.max_response_tokens=400",
                "--output_dir", "run",
            ]
        )  # fmt: skip
    assert left.value.code == 0
    text = Path("run/rollouts/step_000001.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 4
    assert {row["turns"] for row in rows} == {2}
    assert all(row["error"] is None and row["parts"].keys() == {"found"} for row in rows)
