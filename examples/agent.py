"""An agent to train: it looks a digit up with a tool, and gives its own reward.

    ./train.sh --preset quickstart-tools env.tools=null --data builtin:lookup \
        --val_data builtin:lookup_val --env "agent:$PWD/.venv/bin/python examples/agent.py"

Nothing here knows of training: the address and the key of the policy are in OPENAI_BASE_URL and
OPENAI_API_KEY, the task is on stdin, and the last line of stdout is the reward.
"""

import json
import sys

from openai import OpenAI

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look up the digit that belongs to a key.",
            "parameters": {
                "type": "object",
                "properties": {"k": {"type": "integer", "description": "The key."}},
                "required": ["k"],
            },
        },
    }
]


def look(k: int) -> int:
    """The digit that belongs to a key."""
    return (k * 7919 + 13) * 31 % 1009 % 10


def call(name: str, arguments: str) -> str:
    """What a tool replies; errors go back to the model."""
    try:
        return str({"look": look}[name](**json.loads(arguments)))
    except Exception as error:
        return f"Error: {error}"


task = json.load(sys.stdin)
client = OpenAI()
messages = [{"role": "user", "content": task["prompt"]}]
for _ in range(3):
    reply = client.chat.completions.create(model="policy", messages=messages, tools=TOOLS)
    message = reply.choices[0].message
    messages.append(message.model_dump(exclude_none=True))
    if not message.tool_calls:
        break
    for each in message.tool_calls:
        content = call(each.function.name, each.function.arguments)
        messages.append({"role": "tool", "tool_call_id": each.id, "content": content})
answer = (message.content or "").strip()
print(json.dumps({"reward": float(answer == task["ground_truth"])}))
