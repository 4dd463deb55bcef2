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


def assertions(schema: dict[str, Any]) -> dict[str, Any]:
    """The keywords that say something about a value."""
    return {key: value for key, value in schema.items() if key in ASSERTIONS}


def whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value) and value >= 0


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a type that JSON Schema names; 1.0 is an integer."""
    from jsonschema import Draft202012Validator  # slow to import

    return kind in TYPES and Draft202012Validator.TYPE_CHECKER.is_type(value, kind)


def canonical(value: Any) -> str:
    """A text that is the same for values that JSON Schema calls equal: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(_without_float(value), sort_keys=True)


def _without_float(value: Any) -> Any:
    if isinstance(value, float) and value == int(value):
        return int(value)
    if isinstance(value, list):
        return [_without_float(item) for item in value]
    return {key: _without_float(item) for key, item in value.items()} if isinstance(value, dict) else value


def types_of(schema: Any) -> set[str] | None:
    """The types that a schema allows, or None for any; `number` where it allows `integer` only by its values."""
    if not isinstance(schema, dict):
        return None
    kind = schema.get("type")
    if kind is not None:
        return {str(each) for each in kind} if isinstance(kind, list) else {str(kind)}
    values = constants_of(schema)
    if values is not None:
        return {next(kind for kind in TYPES if is_a(json.loads(value), kind)) for value in values}
    return None


def constants_of(schema: Any) -> set[str] | None:
    """The values that `const` or `enum` allow, in canonical form."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return {canonical(schema["const"])}
    values = schema.get("enum")
    return set(map(canonical, values)) if isinstance(values, list) and values else None


def disjoint(sets: list[set[str]]) -> bool:
    return sum(map(len, sets)) == len(set().union(*sets))


def apart(one: Any, other: Any) -> bool:
    """Whether no value can match both schemas."""
    kinds = _with_integers(types_of(one)), _with_integers(types_of(other))
    if kinds[0] is not None and kinds[1] is not None and not kinds[0] & kinds[1]:
        return True
    values = constants_of(one), constants_of(other)
    if values[0] is not None and values[1] is not None and disjoint([values[0], values[1]]):
        return True
    for key in required_of(one).keys() & required_of(other).keys():
        inner = [constants_of(properties_of(schema).get(key)) for schema in (one, other)]
        if inner[0] is not None and inner[1] is not None and disjoint([inner[0], inner[1]]):
            return True
    return False


def _with_integers(kinds: set[str] | None) -> set[str] | None:
    return {*kinds, "integer"} if kinds is not None and "number" in kinds else kinds


def merged(one: Any, other: Any) -> Any:
    """A schema that is matched by what matches both; None where their keywords can't just be put together."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        both = [schema for schema in (one, other) if schema is not True]
        return False if False in both else both[0] if len(both) == 1 else True if not both else None
    first, second = assertions(one), assertions(other)
    if _entangled(first, second) or _entangled(second, first):
        return None
    result = {**first, **second}
    for keyword in first.keys() & second.keys():
        if keyword == "type":
            result["type"] = _common_types(first, second)
            if not result["type"]:
                return False
        elif keyword == "required":
            result["required"] = [*(required_of(first) | required_of(second))]
        elif keyword == "properties":
            names = {**properties_of(first), **properties_of(second)}
            found = {name: merged(*(properties_of(each).get(name, True) for each in (first, second))) for name in names}
            if None in found.values():
                return None
            result["properties"] = found
        elif canonical(first[keyword]) != canonical(second[keyword]):
            return None
    return result


def _entangled(schema: dict[str, Any], beside: dict[str, Any]) -> bool:
    """Whether a keyword would mean something else with the keywords of another schema beside it."""
    others = properties_of(beside).keys() - properties_of(schema).keys()
    closed = schema.get("additionalProperties", True) is not True and bool(others)
    return closed or ("items" in schema and "prefixItems" in beside) or bool(schema.keys() & _OPEN_ENDED)


def _common_types(one: dict[str, Any], other: dict[str, Any]) -> Any:
    kinds = [_with_integers(types_of({"type": schema["type"]})) or set() for schema in (one, other)]
    common = kinds[0] & kinds[1]
    found = sorted(common - {"integer"} if "number" in common else common)
    return found[0] if len(found) == 1 else found


def properties_of(schema: Any) -> dict[str, Any]:
    found = schema.get("properties") if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else {}


def required_of(schema: Any) -> dict[Any, None]:
    """The names under `required`, in order; None among them stands for a `required` that is no list of names."""
    found = schema.get("required", ()) if isinstance(schema, dict) else ()
    if not isinstance(found, list | dict) or not all(isinstance(name, str) for name in found):
        return {} if found == () else {None: None}
    return dict.fromkeys(found)
