"""Answers against the schema that was asked for."""

from __future__ import annotations

import subprocess
import sys
from types import MappingProxyType
from typing import Any

import pytest

from tea_models.errors import UsageError
from tea_runtime.answer_format import call_problem, check_schema, format_problem, mismatch, wanted_schema

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "people": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["big", "old"]}, "uniqueItems": True},
        "twin": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "founded": {"format": "date"},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "value",
    [
        {"name": "Rome"},
        {"name": "Rome", "people": 3, "tags": ["big", "old"], "twin": {"name": "Paris", "twin": None}},
        {"name": "Rome", "people": 3.0, "founded": "1900-02-28"},
    ],
)
def test_what_follows_the_schema_is_fine(value: Any) -> None:
    assert mismatch(value, CITY) == ""
    assert mismatch(value, MappingProxyType(CITY)) == ""


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "at #: "),
        ({}, "at #: "),
        ({"name": 5}, "at #/name: "),
        ({"name": "Constantinople"}, "at #/name: "),
        ({"name": "Rome", "people": True}, "at #/people: "),
        ({"name": "Rome", "tags": ["old", "new"]}, "at #/tags/1: "),
        ({"name": "Rome", "tags": ["old", "old"]}, "at #/tags: "),
        ({"name": "Rome", "founded": "1900-02-30"}, "at #/founded: "),
        ({"name": "Rome", "mayor": "x"}, "at #: "),
    ],
)
def test_what_breaks_it_is_named_with_its_place(value: Any, place: str) -> None:
    assert mismatch(value, CITY).startswith(place)


def test_a_text_that_is_no_json_is_said_to_be_none() -> None:
    for text in ("", "{", "Sure! {}", "[" * 100_000):
        assert format_problem(text, {}) == "it is not JSON"
    assert format_problem('{"name": "Rome"}', CITY) == ""


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "#/nowhere"}, "refers to '/nowhere'"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "refers to 'http://127.0.0.1:9/schema'"),
        ({"$ref": "#"}, "refers to itself"),
    ],
)
def test_a_reference_that_leads_nowhere_is_an_error_and_nothing_is_fetched(schema: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mismatch(1, schema)


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("calls", "problem"),
    [
        ([call("visit", '{"name": "Rome"}')], ""),
        ([call("rest", "{}")], ""),
        (None, "calls no tool"),
        ([call("leave", "{}")], "'leave', which was not offered"),
        ([call("visit", "{}")], "arguments of visit: at #"),
        ([call("visit", '{"name": "Rome"}'), call("rest", "[1]")], "arguments of rest: at #"),
        ([call("visit", "{")], "arguments of visit: it is not JSON"),
    ],
)
def test_a_demanded_call_is_held_to_its_tool(calls: Any, problem: str) -> None:
    tools = [{"function": {"name": "visit", "parameters": CITY}}, {"function": {"name": "rest"}}]
    found = call_problem(calls, tools)
    assert problem in found
    assert bool(problem) == bool(found)


@pytest.mark.parametrize(
    "wanted", [{}, {"type": "yaml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": 3}]
)
def test_a_format_that_is_none_is_refused(wanted: Any) -> None:
    with pytest.raises(UsageError, match="response_format"):
        wanted_schema(wanted)


def test_without_the_package_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['jsonschema'] = None\n"
        "from tea_runtime.answer_format import check_schema\n"
        "try: check_schema({}, extra='api')\n"
        "except Exception as error: print(type(error).__name__, error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["MissingExtraError", "pip", "install", "'tea-models[api]'"]


def test_the_package_is_imported_only_where_a_schema_is_checked() -> None:
    code = "import sys, tea_runtime.answer_format, tea_runtime.api.answers; print('jsonschema' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    check_schema(CITY, extra="api")
