"""JSON Schema (2020-12) as a grammar for llama.cpp.

Every text that the grammar lets through matches the schema when it is read as JSON; not every valid text gets through
(properties come in the schema's order, and none that it does not name). What can't be held to that is named, so that a
caller can refuse instead of failing open.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from tea_models.chat import gbnf, keywords
from tea_models.chat.gbnf import Expression, Repeat, Rule, choice, literal, optional, sequence
from tea_models.chat.keywords import assertions, canonical, constants_of, merged, properties_of, required_of, whole
from tea_models.chat.pattern import CHARACTER, PatternError, pattern_grammar

_MOST_NODES = 4000
_MOST_DEPTH = 64
_MOST_REPEATS = 500
_MOST_ALTERNATIVES = 100

# White space stands where `json.dumps` puts it, which leaves a model nothing to choose there.
_VALUE, _STRING, _COMMA, _COLON = Rule("value"), Rule("string"), literal(", "), literal(": ")


def unenforceable(schema: Any) -> tuple[str, ...]:
    """Name what of a JSON schema (as from `json.loads`) a grammar can't enforce.

    Returns:
        A JSON pointer to a keyword each, such as `#/properties/age/minimum`, some with the reason; empty if
        `SchemaGrammar` gives a grammar that lets only valid texts through.
    """
    grammar = SchemaGrammar()
    grammar.add(schema)
    return grammar.problems


class SchemaGrammar:
    """A grammar made of one or more schemas, each with references into itself only."""

    def __init__(self) -> None:
        self._rules: dict[str, Expression] = {}
        self._problems: dict[str, None] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """What can't be enforced; where this is not empty, the grammar must not be used."""
        return tuple(self._problems)

    def add(self, schema: Any, pointer: str = "#") -> Expression:
        """The grammar of a schema as from `json.loads`; `pointer` is where it stands, for `problems`."""
        try:
            json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            self._problems[f"{pointer} (not JSON: {reason})"] = None
            return _VALUE
        root = _Schema(schema, pointer, self._rules, self._problems)
        expression = root.node(schema, _Place(pointer))
        if not self._problems and not gbnf.is_finite(expression, gbnf.finite_rules(self._rules, gbnf.JSON)):
            self._problems[f"{pointer} (only endless texts match)"] = None
        return expression

    def text(self, root: Expression) -> str:
        """The grammar in GBNF, from `root` on."""
        rules = {name: gbnf.write(rule) for name, rule in {"root": root, **self._rules}.items()} | gbnf.JSON
        return "\n".join(f"{name} ::= {body}" for name, body in rules.items()) + "\n"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a schema the walk is, as a JSON pointer."""

    pointer: str
    heads: frozenset[str] = frozenset()  # references that led here without a character of JSON between
    depth: int = 0

    def same(self, *steps: str | int) -> _Place:
        """A schema for the same value."""
        return replace(self, pointer=self.key(*steps), depth=self.depth + 1)

    def inner(self, *steps: str | int) -> _Place:
        """A schema for a part of the value."""
        return _Place(self.key(*steps), depth=self.depth + 1)

    def key(self, *steps: str | int) -> str:
        return "/".join([self.pointer, *(str(step).replace("~", "~0").replace("/", "~1") for step in steps)])


class _Schema:
    """One schema on its way into a grammar."""

    def __init__(self, root: Any, pointer: str, rules: dict[str, Expression], problems: dict[str, None]) -> None:
        self.root = root
        self.pointer = pointer
        self.rules = rules
        self.problems = problems
        self.references: dict[str, Rule] = {}
        self.nodes = 0

    def problem(self, pointer: str, reason: str = "") -> Expression:
        self.problems[pointer + (f" ({reason})" if reason else "")] = None
        return _VALUE

    def unknown(self, names: frozenset[str] | set[str], schema: Mapping[str, Any], place: _Place) -> None:
        for keyword in sorted(names & schema.keys()):
            self.problem(place.key(keyword))

    def rule(self, expression: Expression) -> Rule:
        name = f"r{len(self.rules)}"
        self.rules[name] = expression
        return Rule(name)

    def node(self, schema: Any, place: _Place) -> Expression:
        self.nodes += 1
        if place.depth > _MOST_DEPTH:
            return self.problem(place.pointer, "nested too deeply")
        if self.nodes > _MOST_NODES:
            return self.problem(self.pointer, "too large")
        if schema is True:
            return _VALUE
        if not isinstance(schema, dict):
            return self.problem(place.pointer, "nothing can match" if schema is False else "expected a schema")
        self.unknown(keywords.NEVER, schema, place)
        if "$id" in schema and place.pointer != self.pointer:
            self.problem(place.key("$id"), "references behind it start elsewhere")
        for names, walk in (
            ({"$ref"}, self.reference),
            ({"allOf"}, self.all_of),
            ({"anyOf", "oneOf"}, self.union),
            ({"const", "enum"}, self.constants),
        ):
            if names & schema.keys():
                return walk(schema, place)
        return self.value(schema, place)

    def value(self, schema: dict[str, Any], place: _Place) -> Expression:
        """A schema without a combination of others."""
        if isinstance(schema.get("type"), list):
            return self.types(schema, place)
        implied = (known for known, words in keywords.OF_TYPE.items() if words & schema.keys())
        kind = schema.get("type") or next(implied, None)
        match kind:
            case None:
                return _VALUE
            case "object":
                return self.object(schema, place)
            case "array":
                return self.array(schema, place)
            case "string":
                return self.string(schema, place)
            case "number" | "integer":
                allowed = {"format"} if schema.get("format") in keywords.WIDE_NUMBERS else set()
                self.unknown(keywords.NUMBER - allowed, schema, place)
                return Rule(kind)
            case "boolean" | "null":
                return Rule(kind)
        return self.problem(place.key("type"), f"{kind!r} is no type")

    # ---- combinations

    def reference(self, schema: Mapping[str, Any], place: _Place) -> Expression:
        reference = schema["$ref"]
        found = self.resolve(reference)
        if found is None:
            return self.problem(place.key("$ref"), f"{reference!r} is not in this schema")
        pointer, target = found
        if pointer in place.heads:
            return self.problem(place.key("$ref"), f"{reference!r} refers to itself")
        beside = {key: value for key, value in assertions(dict(schema)).items() if key != "$ref"}
        if beside:
            both = merged(beside, target)
            if both is None:
                return self.problem(place.key("$ref"), "can't be combined with what is beside it")
            return self.node(both, replace(place, heads=place.heads | {pointer}, depth=place.depth + 1))
        if pointer not in self.references:
            rule = self.references[pointer] = self.rule(_VALUE)
            inside = _Place(self.pointer + pointer, place.heads | {pointer}, place.depth + 1)
            self.rules[rule.name] = self.node(target, inside)
        return self.references[pointer]

    def resolve(self, reference: Any) -> tuple[str, Any] | None:
        """Pointer and target of a reference inside the schema."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return None
        target = self.root
        for part in reference[1:].split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isascii() and key.isdecimal() and str(int(key)) == key:
                if int(key) >= len(target):
                    return None
                target = target[int(key)]
            else:
                return None
            if isinstance(target, dict) and isinstance(target.get("$id"), str):
                return None
        return reference[1:], target

    def followed(self, schema: Any) -> Any:
        """A schema, or what it refers to."""
        for _ in range(8):
            if not isinstance(schema, dict) or assertions(schema).keys() != {"$ref"}:
                break
            found = self.resolve(schema["$ref"])
            schema = found[1] if found else None
        return schema

    def all_of(self, schema: Mapping[str, Any], place: _Place) -> Expression:
        parts = schema["allOf"]
        if not isinstance(parts, list) or not parts:
            return self.problem(place.key("allOf"), "expected a list of schemas")
        whole_schema: Any = {key: value for key, value in assertions(dict(schema)).items() if key != "allOf"}
        if not whole_schema and len(parts) == 1:
            return self.node(parts[0], place.same("allOf", 0))
        for index, part in enumerate(parts):
            whole_schema = merged(whole_schema, self.followed(part))
            if whole_schema is None:
                return self.problem(place.key("allOf", index), "can't be combined with what is beside it")
        return self.node(whole_schema, place.same("allOf"))

    def union(self, schema: Mapping[str, Any], place: _Place) -> Expression:
        keyword = "oneOf" if "oneOf" in schema else "anyOf"
        alternatives = schema[keyword]
        if not isinstance(alternatives, list) or not 0 < len(alternatives) <= _MOST_ALTERNATIVES:
            return self.problem(place.key(keyword), f"expected a list of 1 to {_MOST_ALTERNATIVES} schemas")
        beside = {key: value for key, value in assertions(dict(schema)).items() if key != keyword}
        if keyword == "oneOf":
            alternatives = self.exclusive(alternatives, place.key("oneOf"))
        found = []
        for index, item in enumerate(alternatives):
            alternative = merged(beside, self.followed(item)) if beside else item
            if alternative is None:
                self.problem(place.key(keyword, index), "can't be combined with what is beside it")
            elif alternative is not False:
                found.append(self.node(alternative, place.same(keyword, index)))
        return choice(found) if found else self.problem(place.key(keyword), "nothing can match")

    def exclusive(self, alternatives: list[Any], pointer: str) -> list[Any]:
        """Alternatives of which only one can match; where a property tells them apart, it becomes required."""
        targets = [self.followed(item) for item in alternatives]
        if all(keywords.apart(one, other) for index, one in enumerate(targets) for other in targets[index + 1 :]):
            return alternatives
        for key in properties_of(targets[0]):
            values = [constants_of(self.followed(properties_of(target).get(key))) for target in targets]
            if all(values) and keywords.disjoint([value for value in values if value]):
                return [{**target, "required": [*(required_of(target) | {key: None})]} for target in targets]
        self.problem(pointer, "nothing tells the alternatives apart, so several could match")
        return alternatives

    def types(self, schema: Mapping[str, Any], place: _Place) -> Expression:
        kinds = schema["type"]
        if not kinds or not all(kind in keywords.TYPES for kind in kinds):
            return self.problem(place.key("type"), "expected a list of types" if kinds else "nothing can match")
        return choice(self.node({**schema, "type": kind}, place.same()) for kind in kinds)

    def constants(self, schema: Mapping[str, Any], place: _Place) -> Expression:
        keyword = "const" if "const" in schema else "enum"
        for other in sorted((schema.keys() & keywords.ASSERTIONS) - {keyword, "type"} - keywords.NEVER):
            self.problem(place.key(other), f"beside {keyword}")
        values = [schema["const"]] if keyword == "const" else schema["enum"]
        if not isinstance(values, list):
            return self.problem(place.key(keyword), "expected a list")
        if "type" in schema:
            kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            values = [value for value in values if any(keywords.is_a(value, kind) for kind in kinds)]
        if not values:
            return self.problem(place.key(keyword), "no value is left to choose")
        texts = {canonical(value): _text(value) for value in values}
        return choice(map(literal, texts.values()))

    # ---- values

    def object(self, schema: Mapping[str, Any], place: _Place) -> Expression:
        properties, required = schema.get("properties", {}), required_of(schema)
        if not isinstance(properties, dict) or None in required:
            keyword = "required" if isinstance(properties, dict) else "properties"
            return self.problem(place.key(keyword), "`properties` is an object, `required` a list of names")
        additional = schema.get("additionalProperties", True)
        named = {key: value for key, value in properties.items() if value is not False or key in required}
        enforced = {"properties", "required", "additionalProperties"}
        if properties.keys() >= required.keys() and properties:
            enforced.add("unevaluatedProperties")  # nothing else is generated
        named |= {key: additional for key in required if key not in properties}
        if _at_most(schema.get("minProperties"), len(required)):
            enforced.add("minProperties")
        if (properties or required or additional is False) and _at_least(schema.get("maxProperties"), len(named)):
            enforced.add("maxProperties")
        self.unknown(keywords.OBJECT - enforced, schema, place)
        if not properties and not required and additional is not False:
            return self.map(additional, place)
        members = {}
        for key, value in named.items():
            inside = place.inner("properties", key) if key in properties else place.inner("additionalProperties")
            members[key] = self.rule(sequence(literal(_text(key)), _COLON, self.node(value, inside)))
        return sequence(literal("{"), self.members(members, required), literal("}"))

    def members(self, members: Mapping[str, Expression], required: Mapping[str, None]) -> Expression:
        """The required members in order, then some of the others in order."""
        needed = [rule for key, rule in members.items() if key in required]
        others = [rule for key, rule in members.items() if key not in required]
        tail, starts = sequence(), []
        for rule in reversed(others):
            starts.append(sequence(rule, tail))
            tail = self.rule(sequence(optional(sequence(_COMMA, rule)), tail))
        if needed:
            return sequence(*[part for rule in needed for part in (_COMMA, rule)][1:], tail)
        return optional(choice(reversed(starts))) if starts else sequence()

    def map(self, additional: Any, place: _Place) -> Expression:
        """An object without named properties."""
        if additional is True:
            return Rule("object")
        member = sequence(_STRING, _COLON, self.node(additional, place.inner("additionalProperties")))
        return sequence(literal("{"), _list(member, 0, None), literal("}"))

    def array(self, schema: Mapping[str, Any], place: _Place) -> Expression:
        items, prefix = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):
            return self.problem(place.key("items"), "a list of schemas is written as prefixItems")
        if not isinstance(prefix, list):
            return self.problem(place.key("prefixItems"), "expected a list of schemas")
        least, most = self.bounds("minItems", "maxItems", schema, place)
        allowed = {"items", "prefixItems", "minItems", "maxItems"}
        if schema.get("uniqueItems") is False or most in (0, 1):
            allowed.add("uniqueItems")
        self.unknown(keywords.ARRAY - allowed, schema, place)
        prefix = prefix[: prefix.index(False) if False in prefix else len(prefix)][:most]
        if len(prefix) < len(schema.get("prefixItems", ())) or items is False:
            most = len(prefix) if most is None else min(most, len(prefix))
        if most is not None and least > most:
            return self.problem(place.key("minItems"), "nothing can match")
        first = [self.node(item, place.inner("prefixItems", index)) for index, item in enumerate(prefix)]
        if "items" not in schema and prefix:
            most = max(least, len(prefix))  # what is not described is left out
        least = max(least - len(prefix), 0)
        most = None if most is None else most - len(prefix)
        if not first and items is True and (least, most) == (0, None):
            return Rule("array")
        parts = [part for item in first for part in (_COMMA, item)][1:]
        if most != 0:
            item = self.node(items, place.inner("items"))
            parts.append(Repeat(sequence(_COMMA, item), least, most) if first else _list(item, least, most))
        return sequence(literal("["), *parts, literal("]"))

    def string(self, schema: Mapping[str, Any], place: _Place) -> Expression:
        for keyword in ("pattern", "format"):
            if keyword in schema:
                self.unknown(keywords.STRING - {keyword}, schema, place)
                return _quoted(self.text_of(keyword, schema[keyword], place))
        least, most = self.bounds("minLength", "maxLength", schema, place)
        return _STRING if (least, most) == (0, None) else _quoted(Repeat(CHARACTER, least, most))

    def text_of(self, keyword: str, value: Any, place: _Place) -> Expression:
        if keyword == "format":
            known = gbnf.FORMATS.get(value) if isinstance(value, str) else None
            return gbnf.Terminal(known) if known else self.problem(place.key("format"), f"{value!r} is not enforced")
        try:
            return pattern_grammar(value, most_repeats=_MOST_REPEATS)
        except PatternError as error:
            return self.problem(place.key("pattern"), str(error))

    def bounds(self, low: str, high: str, schema: Mapping[str, Any], place: _Place) -> tuple[int, int | None]:
        """Limits of a repetition that can be written out."""
        for keyword in (low, high):
            value = schema.get(keyword, 0)
            if not whole(value):
                self.problem(place.key(keyword), "expected a whole number")
            elif value > _MOST_REPEATS:
                self.problem(place.key(keyword), f"more than {_MOST_REPEATS} repetitions are not written out")
            else:
                continue
            return 0, None
        least, most = int(schema.get(low, 0)), int(schema[high]) if high in schema else None
        if most is not None and most < least:
            self.problem(place.key(low), f"more than {high}")
            return 0, None
        return least, most


def _list(item: Expression, least: int, most: int | None) -> Expression:
    """Items with commas between."""
    if most == 0:
        return sequence()
    more = Repeat(sequence(_COMMA, item), max(least - 1, 0), None if most is None else most - 1)
    some = sequence(item, more) if most != 1 else item
    return some if least else optional(some)


def _quoted(inside: Expression) -> Expression:
    return sequence(literal('"'), inside, literal('"'))


def _text(value: Any) -> str:
    """A value as JSON; halves of characters, which a grammar can't hold, as escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if any("\ud800" <= character <= "\udfff" for character in text) else text


def _at_most(value: Any, limit: int) -> bool:
    return value is None or (whole(value) and value <= limit)


def _at_least(value: Any, limit: int) -> bool:
    return value is None or (whole(value) and value >= limit)
