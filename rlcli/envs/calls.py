"""Tool calls in a model's text: the formats of model families, and whether a call can be made."""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any]
"""A tool in OpenAI's form: {"type": "function", "function": {"name", "parameters"}}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model wrote."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """The calls in a text, in order. failures: one message per call that cannot be read."""

    calls: Sequence[ToolCall] = ()
    failures: Sequence[str] = field(default_factory=list[str])


Parse = Callable[[str], Calls]


def parse_hermes(text: str) -> Calls:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Qwen 2.5 and 3, Hermes)."""
    found = _Found()
    for block in _blocks(text, "<tool_call>", "</tool_call>", found):
        found.add_json(block)
    return found.calls()


def parse_xml(text: str) -> Calls:
    """`<function=NAME><parameter=KEY>VALUE</parameter></function>` (Qwen3-Coder, Qwen3.5)."""
    found = _Found()
    for block in _blocks(text, "<tool_call>", "</tool_call>", found):
        match = re.fullmatch(r"\s*<function=([^>\n]+)>(.*)</function>\s*", block, re.DOTALL)
        if match is None:
            found.fail("expected <function=NAME>...</function> in <tool_call>")
            continue
        pairs = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", match[2], re.DOTALL)
        found.add(match[1].strip(), {key.strip(): _Text(value) for key, value in pairs})
    return found.calls()


def parse_llama(text: str) -> Calls:
    """A text that is one JSON object, `{"name": ..., "parameters": {...}}` (Llama 3)."""
    found = _Found()
    bare = text.strip()
    tagged = bare.removeprefix("<|python_tag|>").strip()
    if tagged != bare or _JSON_CALL.match(tagged):
        found.add_json(tagged)
    return found.calls()


def parse_mistral(text: str) -> Calls:
    """`[TOOL_CALLS][{...}]` or `[TOOL_CALLS]name[ARGS]{...}` (Mistral)."""
    found = _Found()
    for part in text.split("[TOOL_CALLS]")[1:]:
        name, arrow, arguments = part.partition("[ARGS]")
        if arrow:
            found.add(name.strip(), arguments)
            continue
        given = _json(part.strip())
        if not isinstance(given, list):
            found.fail("expected a JSON list behind [TOOL_CALLS]")
            continue
        for each in given:
            found.add_json(json.dumps(each))
    return found.calls()


def parse_pythonic(text: str) -> Calls:
    """A text that is `[name(key=value), ...]` (Llama 3.2 and 4)."""
    found = _Found()
    bare = text.strip()
    if not _PYTHON_CALL.match(bare):
        return found.calls()
    try:
        tree = ast.parse(bare, mode="eval").body
        calls = [_python_call(each) for each in getattr(tree, "elts", [None])]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        found.fail("expected [name(key=value), ...] with plain values")
        return found.calls()
    for name, arguments in calls:
        found.add(name, arguments)
    return found.calls()


def read_calls(given: Sequence[Mapping[str, Any]]) -> Calls:
    """The calls of a message in OpenAI's form. What cannot be a call is a failure."""
    found = _Found()
    for each in given:
        function = each.get("function")
        function = function if isinstance(function, Mapping) else each
        found.add(function.get("name"), function.get("arguments"))
    return found.calls()


def without_thoughts(text: str) -> str:
    """A text without what it has in <think>: a call that was only thought of is not made."""
    return _CALL_OR_THOUGHT.sub(lambda match: match[1] or "", text)


def looks_like_call(text: str, names: Sequence[str]) -> bool:
    """Whether a text without a call in the right form has one in another. names: of the tools."""
    if any(mark in text for mark in _MARKS):
        return True
    return any(match[1] in names for match in _NAMED_CALL.finditer(text))


_JSON_CALL = re.compile(
    r'\{(?=.*"(?:name|function)"\s*:)(?=.*"(?:parameters|arguments)"\s*:)'
    r'\s*"(?:type|name|function|parameters|arguments)"\s*:',
    re.DOTALL,
)
"""A JSON object that is meant as a call; any other one is an answer."""
_PYTHON_CALL = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")
_CALL_OR_THOUGHT = re.compile(r"(<tool_call>.*?</tool_call>)|<think>.*?(?:</think>|\Z)", re.DOTALL)
_MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
_NAMED_CALL = re.compile(
    r"(?:\{\s*\"name\"\s*:\s*\"|<function=|\[\s*)([A-Za-z_][\w.-]*)"
    r"(?=\"\s*,\s*\"(?:arguments|parameters)\"|>|\s*\()"
)

FORMATS: Mapping[str, Parse] = {
    "hermes": parse_hermes,
    "xml": parse_xml,
    "llama": parse_llama,
    "mistral": parse_mistral,
    "pythonic": parse_pythonic,
}
"""Values of env.tool_format."""


def problem_of(call: ToolCall, schemas: Sequence[Schema]) -> str | None:
    """Why a call cannot be made: unknown tool, or arguments that do not fit; None: it can."""
    known = {schema["function"]["name"]: schema["function"] for schema in schemas}
    function = known.get(call.name)
    if function is None:
        close = difflib.get_close_matches(call.name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"there is no tool {call.name!r}.{hint} Tools: {', '.join(known)}."
    parameters = function.get("parameters") or {}
    properties: Mapping[str, Any] = parameters.get("properties") or {}
    missing = [name for name in parameters.get("required", ()) if name not in call.arguments]
    if missing:
        return f"{call.name} needs the argument {missing[0]}."
    for name, value in call.arguments.items():
        if name not in properties:
            return f"{call.name} has no argument {name}; it has {', '.join(properties) or 'none'}."
        if not _fits(value, properties[name]):
            return (
                f"the argument {name} of {call.name} is {json.dumps(value, default=str)[:80]}, "
                f"expected {_kind_text(properties[name])}."
            )
    return None


def with_types(call: ToolCall, schemas: Sequence[Schema]) -> ToolCall:
    """The call with values that were written as text (XML) in their argument's type."""
    if not any(isinstance(value, _Text) for value in call.arguments.values()):
        return call
    known = {schema["function"]["name"]: schema["function"] for schema in schemas}
    parameters = known.get(call.name, {}).get("parameters") or {}
    properties = parameters.get("properties") or {}
    arguments = {
        name: _typed(value, properties.get(name, {})) if isinstance(value, _Text) else value
        for name, value in call.arguments.items()
    }
    return ToolCall(name=call.name, arguments=arguments)


def sample_call(schema: Schema) -> ToolCall:
    """A call of a tool with made-up arguments that fit, for probes."""
    function = schema["function"]
    parameters = function.get("parameters") or {}
    properties = parameters.get("properties") or {}
    return ToolCall(
        name=function["name"], arguments={name: _sample(each) for name, each in properties.items()}
    )


class _Text(str):
    """A value whose type is not known yet."""


class _Found:
    def __init__(self) -> None:
        self._calls: list[ToolCall] = []
        self._failures: list[str] = []

    def add(self, name: Any, arguments: Any) -> None:
        if isinstance(arguments, str):  # OpenAI's form has JSON in a text
            arguments = _json(arguments)
        if not isinstance(name, str) or not isinstance(arguments, dict):
            self.fail("a call needs a name and an object of arguments")
            return
        self._calls.append(ToolCall(name=name, arguments=arguments))

    def add_json(self, text: str) -> None:
        given = _json(text.strip())
        if not isinstance(given, dict):
            self.fail("the call is not valid JSON")
            return
        function = given.get("function")
        given = function if isinstance(function, dict) else given
        self.add(given.get("name"), given.get("arguments", given.get("parameters", {})))

    def fail(self, text: str) -> None:
        self._failures.append(text)

    def calls(self) -> Calls:
        return Calls(calls=self._calls, failures=self._failures)


def _blocks(text: str, start: str, end: str, found: _Found) -> list[str]:
    """Texts between the marks; one that is never closed is a failure."""
    out = []
    for part in text.split(start)[1:]:
        block, closed, _ = part.partition(end)
        if closed:
            out.append(block)
        else:
            found.fail(f"{start} is not closed by {end}")
    return out


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _python_call(node: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name):
        raise ValueError
    arguments = {key.arg: ast.literal_eval(key.value) for key in node.keywords if key.arg}
    json.dumps(arguments)
    return node.func.id, arguments


_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    kind = schema.get("type", [])
    kinds = [kind] if isinstance(kind, str) else list(kind)
    return [*kinds, "null"] if schema.get("nullable") else kinds


def _kind_text(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return f"one of {json.dumps(schema['enum'])}"
    return " or ".join(_kinds(schema))


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    kinds = _kinds(schema)
    if value is None and "null" in kinds:
        return True
    if "enum" in schema and value not in schema["enum"]:
        return False
    if not kinds or any(kind not in _KINDS for kind in kinds):
        return True
    if isinstance(value, bool):
        return "boolean" in kinds
    return any(isinstance(value, _KINDS[kind]) for kind in kinds)


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    if "string" in _kinds(schema) or not _kinds(schema):
        return str(text)
    value = _json({"True": "true", "False": "false", "None": "null"}.get(text.strip(), text))
    return str(text) if value is None and text.strip() not in ("null", "None") else value


def _sample(schema: Mapping[str, Any]) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    values = {
        "string": "a",
        "integer": 1,
        "number": 1.5,
        "boolean": True,
        "array": [],
        "object": {},
    }
    return next((values[kind] for kind in _kinds(schema) if kind in values), "a")
