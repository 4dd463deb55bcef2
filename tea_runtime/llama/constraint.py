"""What an answer must look like: a response format, a grammar or a demanded tool call, turned into one GBNF grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError
from tea_runtime.errors import UnsupportedError
from tea_runtime.llama.engine import llama

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tea_runtime.backend import LlmCallParams

# How models of a family open and close a call; the others get the bare JSON, which every parser of ours reads.
_CALL_MARKS = {
    "chatml": ("<tool_call>\n", "\n</tool_call>"),
    "phi": ("<|tool_call|>[", "]<|/tool_call|>"),
    "mistral": ("[TOOL_CALLS] [", "]"),
}
_ARGUMENTS_KEY = {"llama-3": "parameters"}


def grammar_of(params: LlmCallParams) -> str | None:
    """The grammar that `grammar` or `response_format` ask for, or None.

    Raises:
        UsageError: Both are given, or the format is not one of OpenAI's.
        UnsupportedError: The schema holds something that can't be enforced; it is never ignored.
    """
    wanted = params.response_format
    kind = wanted.get("type") if wanted is not None else None
    if params.grammar is not None:
        if kind not in (None, "text"):
            raise UsageError("grammar and response_format exclude each other")
        return params.grammar
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        schema = wanted.get("schema")
        return schema_grammar(schema if schema is not None else {"type": "object"})
    if kind == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if schema is None:
            raise UsageError('response_format: expected {"type": "json_schema", "json_schema": {"schema": {…}}}')
        return schema_grammar(schema)
    raise UsageError(f"response_format.type: expected text, json_object or json_schema, found {kind!r}")


def schema_grammar(schema: Any) -> str:
    """A JSON schema as GBNF, by llama.cpp's converter, which knows a part of JSON Schema.

    Raises:
        UnsupportedError: The schema says something that the grammar would not enforce.
        UsageError: It is no schema.
    """
    from tea_models.chat.schema import for_converter, unenforceable

    llama()
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    if not isinstance(schema, Mapping):
        raise UsageError(f"JSON schema: expected a mapping, found {type(schema).__name__}")
    reasons = list(unenforceable(schema))
    if reasons:
        raise UnsupportedError(
            "the JSON schema can't be enforced: " + "; ".join(map(str, reasons[:3])),
            hint="leave these parts out and check them after the call",
        )
    try:
        grammar: str = json_schema_to_gbnf(json.dumps(for_converter(schema)))
    except RecursionError:
        raise UnsupportedError("the JSON schema can't be enforced: it is nested too deeply") from None
    except Exception as error:
        raise UnsupportedError(f"the JSON schema can't be enforced: {error}") from error
    # The converter lets raw control characters into strings, which JSON forbids.
    return grammar.replace(r'[^"\\]', r'[^"\\\x00-\x1F\x7F]')


def demanded_tools(params: LlmCallParams) -> list[Mapping[str, Any]] | None:
    """The tools one of which must be called, by `tool_choice`; None where the model may choose.

    Raises:
        UsageError: `tool_choice` is nothing known, or names a tool that is not there.
    """
    choice = params.tool_choice
    tools = list(params.tools or ())
    if choice is None or choice in ("auto", "none"):
        return None
    if not tools:
        raise UsageError("tool_choice: there are no tools to choose from")
    if choice == "required":
        return tools
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name is None:
        raise UsageError(
            f"tool_choice: expected auto, none, required or a function, found {choice!r}",
            hint='a function is named by {"type": "function", "function": {"name": …}}',
        )
    named = [tool for tool in tools if _function(tool).get("name") == name]
    if not named:
        raise UsageError(
            f"tool_choice: there is no tool {name!r}",
            hint="tools: " + ", ".join(str(_function(tool).get("name")) for tool in tools),
        )
    return named


def check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    """Check that tools are in OpenAI's form.

    Raises:
        UsageError: One is not; the message says which.
    """
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
            raise UsageError(f'tools[{index}]: expected {{"type": "function", "function": {{…}}}}')
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise UsageError(f"tools[{index}].function.name: expected a name, found {name!r}")


def call_grammar(tools: Sequence[Mapping[str, Any]], chat_format: str | None) -> str:
    """A grammar for exactly one call of one of `tools`, in the marks of the model's chat format."""
    key = _ARGUMENTS_KEY.get(chat_format or "", "arguments")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": _function(tool)["name"]},
                key: _function(tool).get("parameters") or {"type": "object"},
            },
            "required": ["name", key],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    grammar = schema_grammar(calls[0] if len(calls) == 1 else {"anyOf": calls})
    before, after = _CALL_MARKS.get(chat_format or "", ("", ""))
    body = re.sub(r"^root ::=", "call-root ::=", grammar, count=1, flags=re.MULTILINE)
    return f"{body}\nroot ::= {_literal(before)} call-root {_literal(after)}\n"


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function: Mapping[str, Any] = tool["function"]
    return function


def _literal(text: str) -> str:
    return json.dumps(text)
