"""The keywords of JSON Schema by what they speak of, and small questions about schemas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
ALWAYS = frozenset({"not", "if", "then", "else", "$dynamicRef", "$recursiveRef"})
OBJECT = frozenset(
    {
        "properties",
        "required",
        "additionalProperties",
        "minProperties",
        "maxProperties",
        "patternProperties",
        "propertyNames",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
    }
)
ARRAY = frozenset(
    {
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "additionalItems",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
        "unevaluatedItems",
    }
)
STRING = frozenset({"pattern", "minLength", "maxLength", "format"})
NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
OF_TYPE: dict[str, frozenset[str]] = {
    "object": OBJECT,
    "array": ARRAY,
    "string": STRING,
    "number": NUMBER | {"format"},
    "integer": NUMBER | {"format"},
}
COMBINED = frozenset({"$ref", "anyOf", "oneOf", "allOf", "const", "enum", "type"})
ASSERTIONS = ALWAYS | OBJECT | ARRAY | STRING | NUMBER | COMBINED
FORMATS = frozenset({"date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5"})
WIDE_NUMBERS = frozenset({"int64", "float", "double"})


def whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value) and value >= 0


def at_most(value: Any, limit: int) -> bool:
    return value is None or (whole(value) and value <= limit)


def at_least(value: Any, limit: int) -> bool:
    return value is None or (whole(value) and value >= limit)


def is_a(value: Any, kind: Any) -> bool:
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return whole(abs(value)) if isinstance(value, int | float) and not isinstance(value, bool) else False
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    return False


def is_literal(value: Any) -> bool:
    """Whether the converter's literals hold a value: it copies JSON's escapes into a grammar, where they differ."""
    if isinstance(value, str):
        return all(
            " " <= character <= "\uffff" and character not in '"\\\x7f' and not "\ud800" <= character <= "\udfff"
            for character in value
        )
    if isinstance(value, dict):
        return all(is_literal(key) and key != "$ref" and is_literal(item) for key, item in value.items())
    return all(map(is_literal, value)) if isinstance(value, list) else True


def types_of(schema: Any) -> set[str] | None:
    if not isinstance(schema, dict):
        return None
    kind = schema.get("type")
    if kind is not None:
        return set(kind) if isinstance(kind, list) else {kind}
    values = constants_of(schema)
    if values is not None:
        return {next(kind for kind in TYPES if is_a(json.loads(value), kind)) for value in values}
    return None


def constants_of(schema: Any) -> set[str] | None:
    """The values that `const` or `enum` allow, as JSON texts."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return {json.dumps(schema["const"], sort_keys=True)}
    values = schema.get("enum")
    return {json.dumps(value, sort_keys=True) for value in values} if isinstance(values, list) and values else None


def disjoint(sets: list[set[str]]) -> bool:
    return sum(map(len, sets)) == len(set().union(*sets))


def apart(one: Any, other: Any) -> bool:
    """Whether no value can match both schemas."""
    kinds = types_of(one), types_of(other)
    if kinds[0] is not None and kinds[1] is not None:
        first, second = ({*kind, *(["integer"] if "number" in kind else [])} for kind in kinds if kind is not None)
        if not first & second:
            return True
    values = constants_of(one), constants_of(other)
    if values[0] is not None and values[1] is not None and disjoint([values[0], values[1]]):
        return True
    for key in required_of(one).keys() & required_of(other).keys():
        inner = [constants_of(properties_of(schema).get(key)) for schema in (one, other)]
        if inner[0] is not None and inner[1] is not None and disjoint([inner[0], inner[1]]):
            return True
    return False


def properties_of(schema: Any) -> dict[str, Any]:
    found = schema.get("properties") if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else {}


def required_of(schema: Any) -> dict[Any, None]:
    """The names under `required`, in order; one that is no name stands for a `required` that is no list of names."""
    found = schema.get("required", ()) if isinstance(schema, dict) else ()
    if not isinstance(found, list | dict) or not all(isinstance(name, str) for name in found):
        return {} if found == () else {None: None}
    return dict.fromkeys(found)


def is_plain_object(schema: Mapping[str, Any]) -> bool:
    plain = {"type", "properties", "required", "additionalProperties"}
    return (
        not (schema.keys() & ASSERTIONS) - plain
        and schema.get("type", "object") == "object"
        and schema.get("additionalProperties", True) is True
    )
