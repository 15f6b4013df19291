"""An episode of verifiers 0.4, or the number of its tasks; run as a file by a Python that has it.

`PYTHON verifiers_agent.py NAME ARGS [--describe]`, ARGS as JSON: `taskset` (its settings),
`renderer` (of the renderers package; null: by the model's name), and anything else of the
environment's configuration. The task is read from stdin, as by every agent.
"""

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

FOLDER_OF_TOKENIZER = "RLCLI_TOKENIZER"


def main() -> None:
    """Print the result as the last line."""
    name, args = sys.argv[1], json.loads(sys.argv[2])
    # verifiers starts Python processes of its own through uv, from this Python's folder
    folder = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", "")])
    sys.path.append(os.getcwd())
    verifiers = importlib.import_module("verifiers.v1")
    env = load(verifiers, name, args)
    if "--describe" in sys.argv:
        print(json.dumps({"num_tasks": len(list(env.taskset))}))
        return
    task = json.load(sys.stdin)
    print(json.dumps(asyncio.run(play(verifiers, env, args, task["index"]))))


def load(verifiers: Any, name: str, args: dict[str, Any]) -> Any:
    """The environment NAME with its settings."""
    own = {key: value for key, value in args.items() if key not in ("taskset", "renderer")}
    settings = {"taskset": {"id": name, **args.get("taskset", {})}, **own}
    return verifiers.load_environment(verifiers.env_config_type(name).model_validate(settings))


async def play(verifiers: Any, env: Any, args: dict[str, Any], index: int) -> dict[str, Any]:
    """Reward and parts of one episode of task number `index`."""
    renderer = args.get("renderer")
    client = verifiers.TrainClientConfig(
        base_url=os.environ["OPENAI_BASE_URL"],
        api_key_var="OPENAI_API_KEY",
        renderer=None if renderer is None else {"name": renderer},
        renderer_model_name=os.environ[FOLDER_OF_TOKENIZER],
    )
    context = verifiers.ModelContext(
        model=os.environ["OPENAI_MODEL"], client=client, sampling=verifiers.SamplingConfig()
    )
    async with env.serving():
        task = list(env.taskset)[index]
        (slot,) = env.slots(task, 1)
        episode = await env.run_slot(slot, context)
    errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
    if not episode.ok or errors:
        found = errors[0] if errors else None
        sys.exit(f"{found.type}: {found.message}" if found else "the episode failed")
    parts = {
        name: reward.value
        for trace in episode.traces
        for name, reward in trace.rewards.items()
        if reward is not None
    }
    return {"reward": sum(trace.reward for trace in episode.traces), "parts": parts}


if __name__ == "__main__":
    main()
