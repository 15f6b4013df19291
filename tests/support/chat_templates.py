"""Chat templates in the forms of model families, on the quickstart's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlcli.models.causal_lm import load_tokenizer

QUICKSTART = Path(__file__).resolve().parents[2] / "rlcli" / "assets" / "quickstart"
TOOLS = """\
{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{%- endfor %}{{ '<|im_end|>\\n' }}{%- endif %}
"""
QWEN = (
    TOOLS
    + """\
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{%- endif %}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
)
THINKING = QWEN.replace(
    "{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>\\n' }}"
)
CODER = QWEN.replace(
    """{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
""",
    """{{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<parameter=' + key + '>\\n' + (value | string) + '\\n</parameter>\\n' }}
{%- endfor %}{{ '</function>\\n</tool_call>' }}
""",
)
LLAMA = """\
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>ipython\\n' + (message.content | tojson) + '<|im_end|>' }}
{%- elif message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call only') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|im_start|>assistant\\n{"name": "' + call.name + '", "parameters": ' }}
{{- (call.arguments | tojson) + '}<|im_end|>' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if loop.first and tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{{- message.content + '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""No text beside a call, and one call in a turn, as in Llama 3.1."""
MISTRAL = """\
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if loop.first and tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) }}{% endif %}
{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]{"content": ' + (message.content | tojson) + ', "call_id": "' }}
{{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- elif message.tool_calls %}
{{- '[TOOL_CALLS][' }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('call ids have 9 characters') }}{% endif %}
{{- (', ' if not loop.first else '') + '{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + ', "id": "' + call.id + '"}' }}
{%- endfor %}
{{- ']<|im_end|>' }}
{%- else %}{{ ' ' + message.content + '<|im_end|>' }}{%- endif %}
{%- endfor %}"""
"""No text beside calls, which have ids, and no words that open a turn, as in Mistral 7B v0.3."""
NO_TOOLS = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}
{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LAST_ONLY = "{{ messages[-1].content }}{{ '<|im_end|>' }}"


def tokenizer_with(template: str | None) -> Any:
    """The quickstart's tokenizer, one token per byte, with this chat template."""
    tokenizer = load_tokenizer(str(QUICKSTART))
    tokenizer.chat_template = template
    return tokenizer


def schema(name: str, **types: str) -> dict[str, Any]:
    """A tool whose arguments are all required."""
    properties = {key: {"type": kind, "description": key} for key, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(types)}
    function = {"name": name, "description": name, "parameters": parameters}
    return {"type": "function", "function": function}
