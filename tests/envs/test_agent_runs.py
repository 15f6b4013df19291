"""Runs of agents through the command line; the agent is that of the examples, on openai."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from agent_parts import command

from rlcli.cli.main import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "agent.py"
DATA = ("--data", "builtin:lookup", "--val_data", "builtin:lookup_val")
LOOKUP = ("--preset", "quickstart-tools", "env.tools=null", "--output_dir", "run")
SMALL = (
    "train.prompts_per_step=2", "train.mini_batch_prompts=1", "rollout.n=2", "train.max_steps=2",
    "run.eval_every=0", "data.val=[]", "env.timeout_s=600",
)  # fmt: skip
LIGHT = """
text = talk(f"k{task['index']}=")
print(json.dumps({"reward": float(text.strip().isdigit())}))
"""


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["train", *LOOKUP, *words])
    return left.value.code  # type: ignore[return-value]


def rollouts() -> list[dict[str, Any]]:
    file = Path("run/rollouts/step_000001.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_agent_of_the_examples_is_trained() -> None:
    """Two steps; docs/agents.md has what such an agent learns in twenty."""
    assert run(*DATA[:2], "--env", f"agent:{sys.executable} {EXAMPLE}", *SMALL) == 0
    rows = rollouts()
    assert len(rows) == 4
    for row in rows:
        assert row["error"] is None
        roles = [message["role"] for message in row["dialogue"]]
        assert roles[0] == roles[-1] == "assistant"
        assert (row["turns"] > 1) == ("tool" in roles)
        answer = row["response"].strip() == row["ground_truth"]
        assert row["reward"] == float(answer)


def test_an_agent_without_data_has_tasks_of_numbers_and_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*SMALL[:4], "env.tasks=6", "env.val_tasks=3", "run.eval_every=2")
    assert run("--env", command(tmp_path, LIGHT), *words) == 0
    assert all(row["prompt"].startswith("k") for row in rollouts())
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["eval", "run", "--k", "2", "--json"])
    assert left.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["unscored"]) == (3, 0)


def test_a_named_reward_scores_the_last_reply(tmp_path: Path) -> None:
    agent = command(tmp_path, "talk(task['prompt'])")
    assert run(*DATA[:2], "--env", agent, "--reward", "exact", *SMALL) == 0
    for row in rollouts():
        assert row["reward"] == float(row["response"].strip() == row["ground_truth"])


def test_a_run_whose_agents_fail_ends_with_their_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--env", command(tmp_path, "sys.exit('no luck')"), *SMALL) == 2
    assert "no luck" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--env", "agent:no_such_program"), "no program"),
        (("--env", "agent:true", "rollout.engine=vllm"), "native sampler"),
        (("--env", "agent:true", "env.args.size=3"), "into the command"),
        (("--env", "agent:true", "--env_python", sys.executable), "into the command"),
        (("--env", "agent:true", "--reward", "exact", "env.agent_scores=true"), "both give"),
        (("--env", "verifiers:guess-two"), "verifiers==0.4"),
        (("--env", "verifiers:guess-two", "--env_python", sys.executable), "cannot be loaded"),
    ],
)
def test_what_does_not_work_is_refused(
    words: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, *SMALL) == 2
    assert why in capsys.readouterr().err
