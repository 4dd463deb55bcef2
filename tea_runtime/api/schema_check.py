"""Does a value follow a JSON schema? The keywords that people use for answers of models; others are not looked at.

A server that accepts `response_format` and ignores it is caught by this. It is no full validator: a value that it finds
nothing wrong with may still break a rule that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_DEPTH = 64
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "number": (int, float),
}


def mismatch(value: Any, schema: Any) -> str:
    """Say where a value breaks a schema, or return an empty text.

    Args:
        value: What JSON was parsed into.
        schema: The schema, with `$ref` into itself at most.
    """
    try:
        return _Checker(schema).check(value, schema, "the answer", 0)
    except (TypeError, AttributeError):  # the schema itself is wrong; that is for the server to say
        return ""


class _Checker:
    def __init__(self, root: Any) -> None:
        self._root = root

    def check(self, value: Any, schema: Any, where: str, depth: int) -> str:
        if schema is False:
            return f"{where} is not allowed"
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return ""
        if "$ref" in schema:
            problem = self.check(value, self._target(schema["$ref"]), where, depth + 1)
            if problem:
                return problem
        return (
            _kind(value, schema, where)
            or self._combined(value, schema, where, depth)
            or (self._object(value, schema, where, depth) if isinstance(value, dict) else "")
            or (self._array(value, schema, where, depth) if isinstance(value, list) else "")
            or _bounds(value, schema, where)
        )

    def _target(self, reference: Any) -> Any:
        node = self._root
        if not isinstance(reference, str) or not reference.startswith("#"):
            return True
        for part in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, Mapping) or key not in node:
                return True
            node = node[key]
        return node

    def _combined(self, value: Any, schema: Mapping[str, Any], where: str, depth: int) -> str:
        for part in schema.get("allOf") or ():
            problem = self.check(value, part, where, depth + 1)
            if problem:
                return problem
        for key in ("anyOf", "oneOf"):
            parts = schema.get(key)
            if parts and all(self.check(value, part, where, depth + 1) for part in parts):
                return f"{where} fits none of {key}"
        return ""

    def _object(self, value: dict[str, Any], schema: Mapping[str, Any], where: str, depth: int) -> str:
        for key in schema.get("required") or ():
            if key not in value:
                return f"{where} lacks {key!r}"
        properties = schema.get("properties") or {}
        others = schema.get("additionalProperties", True)
        for key, item in value.items():
            if key not in properties and others is False:
                return f"{where} has {key!r}, which is not in the schema"
            problem = self.check(item, properties.get(key, others), f"{key!r} of {where}", depth + 1)
            if problem:
                return problem
        return ""

    def _array(self, value: list[Any], schema: Mapping[str, Any], where: str, depth: int) -> str:
        if len(value) < schema.get("minItems", 0) or len(value) > schema.get("maxItems", len(value)):
            return f"{where} has {len(value)} items"
        for index, item in enumerate(value):
            problem = self.check(item, schema.get("items", True), f"[{index}] of {where}", depth + 1)
            if problem:
                return problem
        return ""


def _kind(value: Any, schema: Mapping[str, Any], where: str) -> str:
    wanted = schema.get("type")
    kinds = [wanted] if isinstance(wanted, str) else wanted or []
    if kinds and not any(_is_a(value, kind) for kind in kinds):
        return f"{where} is not of type {' or '.join(map(str, kinds))}"
    if "const" in schema and value != schema["const"]:
        return f"{where} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is none of the values that are allowed"
    return ""


def _is_a(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return bool(kind == "boolean")
    if kind == "integer":
        return isinstance(value, int | float) and value % 1 == 0
    return isinstance(value, _TYPES.get(kind, (object,)))


def _bounds(value: Any, schema: Mapping[str, Any], where: str) -> str:
    def outside(size: Any, least: str, most: str) -> bool:
        return bool(size < schema.get(least, size) or size > schema.get(most, size))

    if isinstance(value, str):
        return f"{where} has {len(value)} characters" if outside(len(value), "minLength", "maxLength") else ""
    if isinstance(value, int | float) and not isinstance(value, bool) and outside(value, "minimum", "maximum"):
        return f"{where} is {value}"
    return ""
