"""The check of answers against the schema that was asked for."""

from __future__ import annotations

import pytest

from tea_runtime.api.schema_check import mismatch

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "people": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["big", "old"]}, "maxItems": 2},
        "twin": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "value",
    [
        {"name": "Rome"},
        {"name": "Rome", "people": 3, "tags": ["big", "old"], "twin": {"name": "Paris", "twin": None}},
        {"name": "Rome", "people": 3.0},
    ],
)
def test_what_follows_the_schema_is_fine(value):
    assert mismatch(value, CITY) == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "not of type object"),
        ({}, "lacks 'name'"),
        ({"name": 5}, "'name' of the answer is not of type string"),
        ({"name": "Constantinople"}, "14 characters"),
        ({"name": "Rome", "people": -1}, "is -1"),
        ({"name": "Rome", "people": 1.5}, "not of type integer"),
        ({"name": "Rome", "people": True}, "not of type integer"),
        ({"name": "Rome", "tags": ["new"]}, "none of the values"),
        ({"name": "Rome", "tags": ["old"] * 3}, "3 items"),
        ({"name": "Rome", "twin": {"name": 1}}, "fits none of anyOf"),
        ({"name": "Rome", "mayor": "x"}, "'mayor', which is not in the schema"),
    ],
)
def test_what_breaks_it_is_named(value, said):
    assert said in mismatch(value, CITY)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": ["string", "null"]}, None, 1),
        ({"const": 1}, 1, 2),
        ({"allOf": [{"type": "integer"}, {"maximum": 3}]}, 3, 4),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, 1, []),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "string"}}}, "x", 1),
        ({"additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": "x"}),
        ({"type": "number"}, 1.5, "x"),
    ],
)
def test_keywords(schema, good, bad):
    assert mismatch(good, schema) == ""
    assert mismatch(bad, schema)


@pytest.mark.parametrize(
    "schema",
    [None, True, {}, {"$ref": "#/nowhere"}, {"$ref": "http://x"}, {"type": "unknown"}, {"$ref": "#"}, {"required": 5}],
)
def test_what_is_not_known_is_not_held_against_the_answer(schema):
    assert mismatch({"a": [1]}, schema) == ""
