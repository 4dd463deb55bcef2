"""The keywords of JSON Schema (2020-12) by what they speak of, and small questions about schemas."""

from __future__ import annotations

import json
from typing import Any

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
#: Enforced nowhere.
NEVER = frozenset({"not", "if", "$dynamicRef", "$recursiveRef"})
OBJECT = frozenset(
    {"properties", "required", "additionalProperties", "minProperties", "maxProperties", "patternProperties"}
    | {"propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties"}
)
ARRAY = frozenset(
    {"items", "prefixItems", "minItems", "maxItems", "additionalItems", "uniqueItems", "contains", "minContains"}
    | {"maxContains", "unevaluatedItems"}
)
STRING = frozenset({"pattern", "minLength", "maxLength", "format"})
NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"})
OF_TYPE = {"object": OBJECT, "array": ARRAY, "string": STRING, "number": NUMBER, "integer": NUMBER}
ASSERTIONS = NEVER | OBJECT | ARRAY | STRING | NUMBER | {"$ref", "anyOf", "oneOf", "allOf", "const", "enum", "type"}
#: Formats that say how a number is stored; every number that is generated fits.
WIDE_NUMBERS = frozenset({"int64", "float", "double"})


def is_a(value: Any, kind: str) -> bool:
    from jsonschema import Draft202012Validator

    return bool(Draft202012Validator.TYPE_CHECKER.is_type(value, kind))


def canonical(value: Any) -> str:
    """A text that is the same for values that JSON Schema calls equal: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(json.loads(json.dumps(value), parse_float=_number), sort_keys=True)


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


def kinds_of(schema: Any) -> set[str] | None:
    """The types that a schema allows, or None for any; `number` stands for `integer` too."""
    if not isinstance(schema, dict):
        return None
    kind = schema.get("type")
    values = constants_of(schema)
    if kind is not None:
        found = set(kind) if isinstance(kind, list) else {kind}
    elif values is not None:
        found = {next(kind for kind in TYPES if is_a(json.loads(value), kind)) for value in values}
    else:
        return None
    return found | {"integer"} if "number" in found else found


def constants_of(schema: Any) -> set[str] | None:
    """The values that `const` or `enum` allow, in canonical form."""
    if not isinstance(schema, dict):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return None if values is None else set(map(canonical, values))


def disjoint(sets: list[set[str] | None]) -> bool:
    known = [each for each in sets if each]
    return len(known) == len(sets) and sum(map(len, known)) == len(set().union(*known))


def apart(one: Any, other: Any) -> bool:
    """Whether no value can match both schemas, by its type or as a constant."""
    return any(disjoint([of(one), of(other)]) for of in (kinds_of, constants_of))


def properties_of(schema: Any) -> dict[str, Any]:
    found: dict[str, Any] = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return found
