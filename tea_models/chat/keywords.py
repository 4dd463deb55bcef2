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
# What is beside its schema changes what these mean.
_OPEN_ENDED = frozenset({"patternProperties", "unevaluatedProperties", "unevaluatedItems", "additionalItems"})


def assertions(schema: dict[str, Any], *but: str) -> dict[str, Any]:
    """The keywords that say something about a value, other than some."""
    return {key: value for key, value in schema.items() if key in ASSERTIONS and key not in but}


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


def merged(one: Any, other: Any) -> Any:
    """A schema that is matched by what matches both; None where their keywords can't just be put together."""
    if one is True or other is True:
        return other if one is True else one
    if not isinstance(one, dict) or not isinstance(other, dict):
        return None
    first, second = assertions(one), assertions(other)
    if _entangled(first, second) or _entangled(second, first):
        return None
    result = {**first, **second}
    for keyword in first.keys() & second.keys():
        if keyword == "required":
            result["required"] = [*dict.fromkeys((*first["required"], *second["required"]))]
        elif keyword == "properties":
            names = {**first["properties"], **second["properties"]}
            result["properties"] = {
                name: merged(*(each["properties"].get(name, True) for each in (first, second))) for name in names
            }
            if None in result["properties"].values():
                return None
        elif canonical(first[keyword]) != canonical(second[keyword]):
            return None
    return result


def _entangled(schema: dict[str, Any], beside: dict[str, Any]) -> bool:
    """Whether a keyword would mean something else with the keywords of another schema beside it."""
    others = properties_of(beside).keys() - properties_of(schema).keys()
    closed = schema.get("additionalProperties", True) is not True and bool(others)
    return closed or ("items" in schema and "prefixItems" in beside) or bool(schema.keys() & _OPEN_ENDED)


def properties_of(schema: Any) -> dict[str, Any]:
    found: dict[str, Any] = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return found
