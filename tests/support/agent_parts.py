"""Agents of the standard library alone, which start in 50 ms, and a sampler that they call."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import native_parts

from rlcli.config.resolved import with_values
from rlcli.config.schema import Config
from rlcli.envs.agent_run import agent_sampler, find_agent
from rlcli.envs.agent_sampler import AgentSampler
from rlcli.types import Prompt

HEAD = """\
import json, os, sys, time, urllib.request

def ask(messages, key=os.environ["OPENAI_API_KEY"], **more):
    body = json.dumps({"model": "m", "messages": messages, **more}).encode()
    head = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body, head)) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]

def say(text):
    return {"role": "user", "content": text}

def answer(text):
    return {"role": "assistant", "content": text}

def talk(first, *others):
    messages = [say(first)]
    for other in (*others, None):
        text = ask(messages)
        messages += [answer(text), say(other)]
    return text

task = json.load(sys.stdin)
"""
GOOD = """
text = talk("1+2=", "3+4=", "5+6=")
print(json.dumps({"reward": len(text) / 10, "parts": {"length": len(text)}}))
"""


def command(folder: Path, text: str) -> str:
    """`agent:COMMAND` of an agent with this text behind HEAD."""
    file = folder / "agent.py"
    file.write_text(HEAD + text)
    return f"agent:{sys.executable} -S -E {file}"


@contextmanager
def sampler_of(folder: Path, text: str, tiny_model: Path, **changes: Any) -> Iterator[AgentSampler]:
    """A sampler of episodes of this agent."""
    values = {
        "env.path": command(folder, text),
        "data.max_prompt_tokens": 60,
        "data.max_response_tokens": 60,
        "env.batch_wait_s": 60.0,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    config = with_values(Config(), values)
    lm, tokenizer = native_parts.load(tiny_model)
    tokenizer.chat_template = None
    native = native_parts.sampler(lm, tokenizer, eos_token_ids=tuple(range(2, 60)))
    sampler = agent_sampler(native, find_agent(config), config, log=folder / "env.log")
    try:
        yield sampler
    finally:
        sampler.close()


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(
            id=f"p{i}",
            messages=({"role": "user", "content": f"task {i}"},),
            token_ids=(5,),
            extra_info={"env_task": {"index": i}, "env_seed": i},
        )
        for i in range(count)
    ]
