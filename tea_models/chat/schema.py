"""What of a JSON schema llama.cpp's grammar converter can enforce.

The converter (`json-schema-to-grammar`, in llama-cpp-python `llama_cpp.llama_grammar.json_schema_to_gbnf`) ignores
every keyword it does not know, and gets some that it knows wrong. `for_converter` rewrites a schema into one that means
the same or less and that the converter gets right; what can't be rewritten is named, so that a caller can refuse
instead of failing open. "Less" is allowed: every text that the grammar lets through is valid, not every valid text gets
through.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tea_models.chat.keywords import (
    ALWAYS,
    ARRAY,
    ASSERTIONS,
    COMBINED,
    FORMATS,
    OBJECT,
    OF_TYPE,
    TYPES,
    WIDE_NUMBERS,
    apart,
    at_least,
    at_most,
    constants_of,
    disjoint,
    is_a,
    is_literal,
    is_plain_object,
    properties_of,
    required_of,
    types_of,
    whole,
)
from tea_models.chat.pattern import pattern_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_NODES = 4000
_MOST_DEPTH = 64
_MOST_REPEATS = 500
_MOST_ALTERNATIVES = 100
# Names of the converter's own rules. It looks them up after it has escaped other names: they must not fall together.
_RULES = frozenset(
    {"root", "dot", "boolean", "decimal-part", "integral-part", "number", "integer", "value", "object", "array", "uuid"}
    | {"char", "string", "null", "date", "time", "date-time", "date-string", "time-string", "date-time-string"}
)
_NOT_IN_RULES = re.compile(r"[^a-zA-Z0-9-]+")
_ANY: dict[str, Any] = {"anyOf": [{"type": name} for name in TYPES if name != "integer"]}


def unenforceable(schema: Any) -> tuple[str, ...]:
    """Name what of a JSON schema could not be enforced.

    Args:
        schema: The schema, as from `json.loads`.

    Returns:
        A path and a keyword each, such as `$.properties.age.minimum`, some with the reason; empty if `for_converter`
        gives a schema whose grammar lets only valid texts through.
    """
    return tuple(_Rewriter(schema).run()[1])


def for_converter(schema: Any) -> dict[str, Any]:
    """Rewrite a schema so that llama.cpp's converter enforces it; see `unenforceable` for what stays out.

    References get names that fall together with no rule, lists of types become alternatives, `allOf` of objects one
    object.
    """
    return _Rewriter(schema).run()[0]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a schema a rewriter is.

    Attributes:
        path: For messages.
        name: What the converter will call the rule.
        heads: References that led here without a character of JSON between.
        depth: How deep it is nested.
    """

    path: str = "$"
    name: str = ""
    heads: frozenset[str] = frozenset()
    depth: int = 0

    def same(self, step: str, suffix: str = "") -> _Place:
        """A schema for the same value."""
        stem = f"{self.name}-" if self.name else "alternative-"
        name = stem + suffix if suffix else self.name
        return replace(self, path=self.path + step, name=name, depth=self.depth + 1)

    def inner(self, step: str, name: str) -> _Place:
        """A schema for a part of the value."""
        return _Place(self.path + step, f"{self.name}-{name}" if self.name else name, frozenset(), self.depth + 1)


class _Rewriter:
    def __init__(self, schema: Any) -> None:
        self.root = schema
        self.problems: list[str] = []
        self.defs: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.nodes = 0
        self.prefix = "ref-"

    def run(self) -> tuple[dict[str, Any], list[str]]:
        try:
            text = json.dumps(self.root, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            return {}, [f"$ (not JSON: {reason})"]
        while self.prefix in text:
            self.prefix += "x-"
        result = self.node(self.root, _Place())
        if not self.problems and not _ends(result, self.finite()):
            self.problem("$", "only endless texts match")
        if self.defs:
            # Where the whole schema is a reference, the converter does not look for more of them.
            result = {"anyOf": [result]} if "$ref" in result else result
            result = {**result, "$defs": self.defs}
        return result, list(dict.fromkeys(self.problems))

    def finite(self) -> set[str]:
        """Names of the definitions that some finite text matches."""
        found: set[str] = set()
        while more := {name for name, schema in self.defs.items() if name not in found and _ends(schema, found)}:
            found |= more
        return found

    def problem(self, path: str, reason: str = "") -> dict[str, Any]:
        self.problems.append(path + (f" ({reason})" if reason else ""))
        return dict(_ANY)

    def node(self, schema: Any, place: _Place) -> dict[str, Any]:
        self.nodes += 1
        if place.depth > _MOST_DEPTH:
            return self.problem(place.path, "nested too deeply")
        if self.nodes > _MOST_NODES:
            return self.problem("$", "too large")
        if schema is True:
            return dict(_ANY)
        if not isinstance(schema, dict):
            return self.problem(place.path, "nothing can match" if schema is False else "expected a schema")
        for keyword in ALWAYS & schema.keys():
            self.problem(f"{place.path}.{keyword}")
        for keywords, rewrite in (
            ({"$ref"}, self.reference),
            ({"anyOf", "oneOf"}, self.union),
            ({"allOf"}, self.merged),
            ({"const", "enum"}, self.constants),
        ):
            if keywords & schema.keys():
                return rewrite(schema, place)
        if isinstance(schema.get("type"), list):
            return self.types(schema, place)
        return self.typed(schema, place)

    def typed(self, schema: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        kind = schema.get("type") or next((known for known, words in OF_TYPE.items() if words & schema.keys()), None)
        match kind:
            case None:
                return dict(_ANY)
            case "object":
                return self.object(schema, place)
            case "array":
                return self.array(schema, place)
            case "string":
                return self.string(schema, place.path)
            case "number" | "integer" | "boolean" | "null":
                return self.scalar(kind, schema, place.path)
        return self.problem(f"{place.path}.type", f"{kind!r} is no type")

    # ---- combinations

    def reference(self, schema: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        reference = schema["$ref"]
        self.beside("$ref", schema, place.path, {"$ref"})
        found = self.resolve(reference)
        if found is None:
            return self.problem(f"{place.path}.$ref", f"{reference!r} is not in this schema")
        pointer, target = found
        if pointer in place.heads:
            return self.problem(f"{place.path}.$ref", f"{reference!r} refers to itself")
        if pointer not in self.names:
            self.names[pointer] = own = f"{self.prefix}{len(self.names)}"
            inside = _Place(pointer.replace("/", "."), own, place.heads | {pointer}, place.depth + 1)
            self.defs[own] = self.node(target, inside)
        return {"$ref": f"#/$defs/{self.names[pointer]}"}

    def resolve(self, reference: Any) -> tuple[str, Any] | None:
        """Pointer (with `$` for the root) and target of a reference inside the schema."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return None
        target = self.root
        for part in reference[1:].split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                return None
        return "$" + reference[1:], target

    def followed(self, schema: Any) -> Any:
        """A schema, or what it refers to."""
        for _ in range(8):
            if not isinstance(schema, dict) or (schema.keys() & ASSERTIONS) != {"$ref"}:
                break
            found = self.resolve(schema["$ref"])
            schema = found[1] if found else None
        return schema

    def beside(self, keyword: str, schema: Mapping[str, Any], path: str, allowed: set[str]) -> None:
        for other in sorted((schema.keys() & ASSERTIONS) - allowed - ALWAYS):
            self.problem(f"{path}.{other}", f"beside {keyword}")

    def union(self, schema: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        keyword = "oneOf" if "oneOf" in schema else "anyOf"
        self.beside(keyword, schema, place.path, {keyword, "type"})
        alternatives = schema[keyword]
        if not isinstance(alternatives, list) or not 0 < len(alternatives) <= _MOST_ALTERNATIVES:
            return self.problem(f"{place.path}.{keyword}", f"expected a list of 1 to {_MOST_ALTERNATIVES} schemas")
        if "type" in schema:
            alternatives = [self.with_type(item, schema["type"], f"{place.path}.type") for item in alternatives]
        if keyword == "oneOf":
            alternatives = self.exclusive(alternatives, f"{place.path}.oneOf")
        return {
            "anyOf": [
                self.node(item, place.same(f".{keyword}[{index}]", str(index)))
                for index, item in enumerate(alternatives)
            ]
        }

    def with_type(self, schema: Any, kind: Any, path: str) -> Any:
        """An alternative with the type that stands beside the list of alternatives."""
        outer = set(kind) if isinstance(kind, list) else {kind}
        inner = types_of(self.followed(schema))
        if inner is not None and inner <= outer | ({"integer"} if "number" in outer else set()):
            return schema
        if inner is None and isinstance(schema, dict) and not schema.keys() & (COMBINED - {"type"}):
            return {**schema, "type": kind}
        self.problem(path, "beside alternatives of other types")
        return schema

    def exclusive(self, alternatives: list[Any], path: str) -> list[Any]:
        """Alternatives of which only one can match; where a property tells them apart, it becomes required."""
        targets = [self.followed(item) for item in alternatives]
        if all(apart(one, other) for index, one in enumerate(targets) for other in targets[index + 1 :]):
            return alternatives
        for key in properties_of(targets[0]):
            values = [constants_of(self.followed(properties_of(target).get(key))) for target in targets]
            if all(values) and disjoint([value for value in values if value]):
                return [{**target, "required": [*(required_of(target) | {key: None})]} for target in targets]
        self.problem(path, "nothing tells the alternatives apart, so several could match")
        return alternatives

    def merged(self, schema: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        parts = schema["allOf"]
        if not isinstance(parts, list) or not parts:
            return self.problem(f"{place.path}.allOf", "expected a list of schemas")
        beside = {key: value for key, value in schema.items() if key in ASSERTIONS and key != "allOf"}
        if not beside and len(parts) == 1:
            return self.node(parts[0], place.same(".allOf[0]"))
        properties: dict[str, Any] = {}
        required: dict[Any, None] = {}
        for part in [beside, *parts]:
            target = self.followed(part)
            if not isinstance(target, dict) or not is_plain_object(target):
                return self.problem(f"{place.path}.allOf", "only plain objects can be combined")
            if properties.keys() & properties_of(target).keys():
                return self.problem(f"{place.path}.allOf", "a property stands in several parts")
            properties |= properties_of(target)
            required |= required_of(target)
        return self.object({"properties": properties, "required": [*required]}, place)

    def types(self, schema: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        kinds = schema["type"]
        if not kinds or not all(kind in TYPES for kind in kinds):
            return self.problem(f"{place.path}.type", "expected a list of types")
        return {
            "anyOf": [
                self.node({**schema, "type": kind}, place.same("", str(index))) for index, kind in enumerate(kinds)
            ]
        }

    # ---- values

    def constants(self, schema: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        keyword = "const" if "const" in schema else "enum"
        path = f"{place.path}.{keyword}"
        self.beside(keyword, schema, place.path, {keyword, "type"})
        values = [schema["const"]] if keyword == "const" else schema["enum"]
        if not isinstance(values, list):
            return self.problem(path, "expected a list")
        if "type" in schema:
            kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            values = [value for value in values if any(is_a(value, kind) for kind in kinds)]
        if not values:
            return self.problem(path, "no value is left to choose")
        if not all(map(is_literal, values)):
            return self.problem(path, "a value with quotes, backslashes, control or rare characters")
        return {"enum": values}

    def object(self, schema: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = required_of(schema)
        if not isinstance(properties, dict) or None in required:
            return self.problem(place.path, "`properties` is an object, `required` a list of names")
        additional = schema.get("additionalProperties", True)
        enforced = {"properties", "required", "additionalProperties"}
        if at_most(schema.get("minProperties"), len(required)):
            enforced.add("minProperties")
        if isinstance(additional, dict) and properties:
            self.problem(f"{place.path}.additionalProperties", "beside properties")
        properties = properties | {key: additional for key in required if key not in properties}
        if (properties or additional is False) and at_least(schema.get("maxProperties"), len(properties)):
            enforced.add("maxProperties")
        self.unknown(OBJECT - enforced, schema, place.path)
        if not properties:
            return self.map(additional, place)
        rewritten = {key: self.property(key, value, place) for key, value in properties.items()}
        return {"type": "object", "properties": rewritten, "required": [*required], "additionalProperties": False}

    def map(self, additional: Any, place: _Place) -> dict[str, Any]:
        """An object without named properties."""
        if isinstance(additional, dict):
            values = self.node(additional, place.inner(".additionalProperties", "additional-value"))
            return {"type": "object", "additionalProperties": values}
        return {"type": "object"} | ({"additionalProperties": False} if additional is False else {})

    def property(self, key: str, schema: Any, place: _Place) -> dict[str, Any]:
        inside = place.inner(f".properties.{key}", key)
        if not is_literal(key) or key == "$ref":
            return self.problem(inside.path, "a name with quotes, backslashes, control or rare characters")
        if inside.name not in _RULES and _NOT_IN_RULES.sub("-", inside.name) in _RULES:
            return self.problem(inside.path, "the converter has a rule of this name")
        return self.node(schema, inside)

    def array(self, schema: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        items, prefix = schema.get("items", True), schema.get("prefixItems")
        if isinstance(items, list):  # drafts before 2020-12
            items, prefix = True, items
        enforced = {"items", "prefixItems", "minItems", "maxItems", "additionalItems"}
        self.unknown(ARRAY - enforced, schema, place.path)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        bounds = self.bounds(least, most, f"{place.path}.minItems")
        if isinstance(prefix, list) and prefix:
            if not at_most(least, len(prefix)) or not at_least(most, len(prefix)):
                self.problem(f"{place.path}.minItems", "other than the number of prefixItems")
            parts = [
                self.node(item, place.inner(f".prefixItems[{index}]", f"tuple-{index}"))
                for index, item in enumerate(prefix)
            ]
            return {"type": "array", "prefixItems": parts}
        if items is False:
            return self.problem(f"{place.path}.minItems", "nothing can match") if least else {"enum": [[]]}
        if items is True and not bounds:
            return {"type": "array"}
        limits = {} if bounds is None else {"minItems": bounds[0]}
        if bounds is not None and bounds[1] is not None:
            limits["maxItems"] = bounds[1]
        return {"type": "array", "items": self.node(items, place.inner(".items", "item")), **limits}

    def string(self, schema: Mapping[str, Any], path: str) -> dict[str, Any]:
        if "pattern" in schema:
            self.unknown({"minLength", "maxLength", "format"}, schema, path)
            problem = pattern_problem(schema["pattern"], most_repeats=_MOST_REPEATS)
            if problem:
                return self.problem(f"{path}.pattern", problem)
            return {"type": "string", "pattern": schema["pattern"]}
        if "format" in schema:
            self.unknown({"minLength", "maxLength"}, schema, path)
            if schema["format"] not in FORMATS:
                return self.problem(f"{path}.format", f"{schema['format']!r} is not checked")
            return {"type": "string", "format": schema["format"]}
        bounds = self.bounds(schema.get("minLength", 0), schema.get("maxLength"), f"{path}.minLength")
        if bounds is None:
            return {"type": "string"}
        return {"type": "string", "minLength": bounds[0]} | ({} if bounds[1] is None else {"maxLength": bounds[1]})

    def scalar(self, kind: str, schema: Mapping[str, Any], path: str) -> dict[str, Any]:
        self.unknown(OF_TYPE.get(kind, frozenset()) - {"format"}, schema, path)
        if kind in ("number", "integer") and "format" in schema and schema["format"] not in WIDE_NUMBERS:
            self.problem(f"{path}.format", f"{schema['format']!r} is not checked")
        return {"type": kind}

    def unknown(self, keywords: frozenset[str] | set[str], schema: Mapping[str, Any], path: str) -> None:
        for keyword in sorted(keywords & schema.keys()):
            if not (keyword == "uniqueItems" and schema[keyword] is False):
                self.problem(f"{path}.{keyword}")

    def bounds(self, least: Any, most: Any, path: str) -> tuple[int, int | None] | None:
        """Limits of a repetition that the converter can write out; None where there are none."""
        if not whole(least) or not (most is None or whole(most)):
            self.problem(path, "expected whole numbers")
            return None
        if most is not None and most < least:
            self.problem(path, "more than the maximum")
            return None
        if max(least, most or 0) > _MOST_REPEATS:
            self.problem(path, f"more than {_MOST_REPEATS} repetitions are not written out")
            return None
        return (int(least), None if most is None else int(most)) if least or most is not None else None


def _ends(schema: Mapping[str, Any], finite: set[str]) -> bool:
    """Whether a finite text matches a rewritten schema, given the definitions of which that is known."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2] in finite
    if "anyOf" in schema:
        return any(_ends(item, finite) for item in schema["anyOf"])
    if "prefixItems" in schema:
        return all(_ends(item, finite) for item in schema["prefixItems"])
    if schema.get("minItems"):
        return _ends(schema["items"], finite)
    return all(_ends(schema["properties"][name], finite) for name in schema.get("required", ()))
