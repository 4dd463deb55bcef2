"""What an answer must look like: a response format, a grammar or a demanded tool call, turned into one GBNF grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tea_models.chat.gbnf import choice, literal, sequence
from tea_models.chat.schema import SchemaGrammar
from tea_models.errors import UsageError
from tea_runtime.answer_format import check_schema, wanted_schema
from tea_runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from tea_runtime.backend import LlmCallParams

# How models of a family open and close a call; the others get the bare JSON, which every parser of ours reads.
_CALL_MARKS = {
    "chatml": ("<tool_call>\n", "\n</tool_call>"),
    "phi": ("<|tool_call|>[", "]<|/tool_call|>"),
    "mistral": ("[TOOL_CALLS] [", "]"),
}
_ARGUMENTS_KEY = {"llama-3": "parameters"}


def grammar_of(params: LlmCallParams) -> str | None:
    """The grammar that `grammar` or `response_format` ask for, or None."""
    schema = wanted_schema(params.response_format)
    if params.grammar is not None:
        if schema is not None:
            raise UsageError("grammar and response_format exclude each other")
        return params.grammar
    return None if schema is None else schema_grammar(schema)


def schema_grammar(schema: Any) -> str:
    check_schema(schema, extra="llm-local")
    grammar = SchemaGrammar()
    root = grammar.add(schema)
    _check_enforced(grammar, "the JSON schema")
    return grammar.text(root)


def _check_enforced(grammar: SchemaGrammar, what: str) -> None:
    if grammar.problems:
        raise UnsupportedError(
            f"{what} can't be enforced: " + "; ".join(grammar.problems[:3]),
            hint="leave these parts out and check them after the call",
        )


def demanded_tools(params: LlmCallParams) -> list[Mapping[str, Any]] | None:
    """The tools one of which must be called, by `tool_choice`; None where the model may choose."""
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
    named = [tool for tool in tools if tool["function"].get("name") == name]
    if not named:
        raise UsageError(
            f"tool_choice: there is no tool {name!r}",
            hint="tools: " + ", ".join(str(tool["function"].get("name")) for tool in tools),
        )
    return named


def check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
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
    grammar = SchemaGrammar()
    calls = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        schema = function.get("parameters") or {"type": "object"}
        check_schema(schema, extra="llm-local")
        arguments = grammar.add(schema, f"tools/{index}/function/parameters#")
        start = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "{key}": '
        calls.append(sequence(literal(start), arguments, literal("}")))
    _check_enforced(grammar, "the parameters of a tool")
    before, after = _CALL_MARKS.get(chat_format or "", ("", ""))
    return grammar.text(sequence(literal(before), choice(calls), literal(after)))
