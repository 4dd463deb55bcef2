"""Grammars of tool calls and response formats: each schema means itself, and what is none is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tea_models.errors import UsageError
from tea_runtime.answer_format import call_problem
from tea_runtime.backend import LlmCallParams
from tea_runtime.errors import UnsupportedError
from tea_runtime.llama.constraint import call_grammar, grammar_of, schema_grammar
from tests.gbnf_sample import Grammar


def tool(name: str, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


COLOURS = {"properties": {"c": {"$ref": "#/$defs/v"}}, "required": ["c"], "$defs": {"v": {"enum": ["red", "blue"]}}}
NUMBERS = {"properties": {"n": {"$ref": "#/$defs/v"}}, "required": ["n"], "$defs": {"v": {"type": "integer"}}}
TREE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("chat_format", "before", "after"),
    [
        (None, "", ""),
        ("chatml", "<tool_call>\n", "\n</tool_call>"),
        ("phi", "<|tool_call|>[", "]<|/tool_call|>"),
        ("mistral", "[TOOL_CALLS] [", "]"),
    ],
)
def test_a_reference_in_a_tools_schema_means_that_schema(chat_format: str | None, before: str, after: str) -> None:
    tools = [tool("colour", COLOURS), tool("number", NUMBERS), tool("tree", TREE), tool('odd "\\\n', None)]
    rules = Grammar(call_grammar(tools, chat_format))
    rng = random.Random(1)
    called = set()
    for _ in range(100):
        text = rules.sample(rng)
        assert text.startswith(before)
        assert text.endswith(after)
        call = json.loads(text.removeprefix(before).removesuffix(after))
        called.add(call["name"])
        function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
        assert call_problem([{"function": function}], tools) == ""
    assert len(called) == 4


def test_llama_3_calls_its_arguments_parameters() -> None:
    text = Grammar(call_grammar([tool("f", COLOURS)], "llama-3")).sample(random.Random(1))
    assert json.loads(text)["parameters"]["c"] in ("red", "blue")


def test_what_a_tools_schema_can_not_hold_is_named_with_the_tool() -> None:
    tools = [tool("a", COLOURS), tool("b", {"properties": {"n": {"type": "integer", "maximum": 9}}})]
    with pytest.raises(UnsupportedError, match="tools/1/function/parameters#/properties/n/maximum"):
        call_grammar(tools, None)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "text"}, "#/type"),
        ({"properties": {"a/b": {"minLength": -1}}}, "#/properties/a~1b/minLength"),
        ({"items": [{}]}, "#/items"),
        ({"required": "a"}, "#/required"),
        (3, "expected a mapping, found int"),
        ("x", "expected a mapping, found str"),
    ],
)
def test_what_is_no_schema_is_refused_with_the_place(schema: Any, place: str) -> None:
    with pytest.raises(UsageError, match=f"JSON schema: {place}"):
        schema_grammar(schema)


@pytest.mark.parametrize("wanted", [None, {"type": "text"}])
def test_free_text_has_no_grammar(wanted: Any) -> None:
    assert grammar_of(LlmCallParams("x", response_format=wanted)) is None
    assert grammar_of(LlmCallParams("x", response_format=wanted, grammar="root ::= [a]")) == "root ::= [a]"


def test_a_grammar_and_a_format_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        grammar_of(LlmCallParams("x", response_format={"type": "json_object"}, grammar="root ::= [a]"))


def test_a_json_object_is_one_and_may_have_a_schema() -> None:
    rng = random.Random(1)
    for wanted, kind in (({"type": "json_object"}, dict), ({"type": "json_object", "schema": {"type": "array"}}, list)):
        text = grammar_of(LlmCallParams("x", response_format=wanted))
        assert text is not None
        assert isinstance(json.loads(Grammar(text).sample(rng)), kind)
