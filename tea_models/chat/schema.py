"""JSON Schema (2020-12) as a grammar for llama.cpp.

Every text that the grammar lets through matches the schema when it is read as JSON; not every valid text gets through
(properties come in the schema's order, and none that it does not name). What can't be held to that is named, so that a
caller can refuse instead of failing open.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tea_models.chat.gbnf import (
    FORMATS,
    JSON,
    Repeat,
    Rule,
    Terminal,
    choice,
    finite_rules,
    is_finite,
    literal,
    sequence,
    write,
)
from tea_models.chat.pattern import CHARACTER, PatternError, pattern_grammar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jsonschema import ValidationError

    from tea_models.chat.gbnf import Expression

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
#: Enforced nowhere.
_NEVER = frozenset({"not", "if", "$dynamicRef", "$recursiveRef"})
_OBJECT = frozenset(
    {"properties", "required", "additionalProperties", "minProperties", "maxProperties", "patternProperties"}
    | {"propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties"}
)
_ARRAY = frozenset(
    {"items", "prefixItems", "minItems", "maxItems", "additionalItems", "uniqueItems", "contains", "minContains"}
    | {"maxContains", "unevaluatedItems"}
)
_STRING = frozenset({"pattern", "minLength", "maxLength", "format"})
_NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"})
_OF_TYPE = {"object": _OBJECT, "array": _ARRAY, "string": _STRING, "number": _NUMBER, "integer": _NUMBER}
_ASSERTIONS = (
    _NEVER | _OBJECT | _ARRAY | _STRING | _NUMBER | {"$ref", "anyOf", "oneOf", "allOf", "const", "enum", "type"}
)
#: Formats that say how a number is stored; every number that is generated fits.
_WIDE_NUMBERS = frozenset({"int64", "float", "double"})

_MOST_NODES = 4000
_MOST_REPEATS = 500
_MOST_ALTERNATIVES = 100

_SPACE, _VALUE, _ANY_STRING = Rule("space"), Rule("value"), Rule("string")
_COMMA = sequence(literal(","), _SPACE)


def unenforceable(schema: Any) -> tuple[str, ...]:
    """Name what of a JSON schema a grammar can't enforce.

    Args:
        schema: The schema, as from `json.loads`.

    Returns:
        A JSON pointer to a keyword each, such as `#/properties/age/minimum`, some with the reason; empty if
        `SchemaGrammar` gives a grammar that lets only valid texts through.
    """
    grammar = SchemaGrammar()
    grammar.add(schema)
    return grammar.problems


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a schema the walk is, and the references that led here without a character of JSON between."""

    pointer: str
    heads: frozenset[str] = frozenset()

    def same(self, *steps: str | int) -> _Place:
        """A schema for the same value."""
        return replace(self, pointer=self.key(*steps))

    def inner(self, *steps: str | int) -> _Place:
        """A schema for a part of the value."""
        return _Place(self.key(*steps))

    def key(self, *steps: str | int) -> str:
        return "/".join([self.pointer, *(str(step).replace("~", "~0").replace("/", "~1") for step in steps)])


class SchemaGrammar:
    """A grammar made of one or more schemas, each with references into itself only."""

    def __init__(self) -> None:
        self._rules: dict[str, Expression] = {}
        self._problems: dict[str, None] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """What can't be enforced; where this is not empty, the grammar must not be used."""
        return tuple(self._problems)

    def add(self, schema: Any, pointer: str = "#", *, checked: bool = False) -> Expression:
        """The grammar of a schema, which may be `checked` to be one; `pointer` says where it stands, for `problems`."""
        self._root, self._pointer, self._nodes = schema, pointer, 0
        self._references: dict[str, Rule] = {}
        try:
            json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError) as error:
            return self._problem(pointer, f"not JSON: {error}")
        except RecursionError:
            return self._problem(pointer, "nested too deeply")
        try:
            flaw = None if checked else _malformed(schema)
            if flaw is not None:
                return self._problem(_Place(pointer).key(*flaw.absolute_path), flaw.message[:200])
            expression = self._node(schema, _Place(pointer))
            if not self._problems and not is_finite(expression, finite_rules(self._rules, JSON)):
                self._problem(pointer, "only endless texts match")
        except RecursionError:
            return self._problem(pointer, "nested too deeply")
        return expression

    def text(self, root: Expression) -> str:
        """The grammar in GBNF, from `root` on."""
        rules = {"root": write(root), **{name: write(rule) for name, rule in self._rules.items()}, **JSON}
        return "\n".join(f"{name} ::= {body}" for name, body in rules.items()) + "\n"

    def _problem(self, pointer: str, reason: str = "") -> Expression:
        self._problems[pointer + (f" ({reason})" if reason else "")] = None
        return _VALUE

    def _unknown(self, keywords: frozenset[str] | set[str], schema: Mapping[str, Any], place: _Place) -> None:
        for keyword in sorted(keywords & schema.keys()):
            self._problem(place.key(keyword))

    def _alone(self, keyword: str, schema: dict[str, Any], place: _Place, *but: str) -> None:
        for other in sorted((schema.keys() & _ASSERTIONS) - {keyword, *but} - _NEVER):
            self._problem(place.key(other), f"beside {keyword}")

    def _rule(self, expression: Expression) -> Rule:
        name = f"r{len(self._rules)}"
        self._rules[name] = expression
        return Rule(name)

    def _node(self, schema: Any, place: _Place) -> Expression:
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            return self._problem(self._pointer, "too large")
        if isinstance(schema, bool):
            return _VALUE if schema else self._problem(place.pointer, "nothing can match")
        self._unknown(_NEVER, schema, place)
        if "$id" in schema and place.pointer != self._pointer:
            self._problem(place.key("$id"), "references behind it start elsewhere")
        for keywords, walk in (
            ({"$ref"}, self._reference),
            ({"allOf"}, self._all_of),
            ({"anyOf", "oneOf"}, self._union),
            ({"const", "enum"}, self._constants),
        ):
            if keywords & schema.keys():
                return walk(schema, place)
        return self._value(schema, place)

    def _value(self, schema: dict[str, Any], place: _Place) -> Expression:
        """A schema without a combination of others."""
        kind = schema.get("type") or next((known for known, words in _OF_TYPE.items() if words & schema.keys()), None)
        if isinstance(kind, list):
            return choice(self._node({**schema, "type": one}, place.same()) for one in kind)
        match kind:
            case None:
                return _VALUE
            case "object":
                return self._object(schema, place)
            case "array":
                return self._array(schema, place)
            case "string":
                return self._string(schema, place)
            case "number" | "integer":
                allowed = {"format"} if schema.get("format") in _WIDE_NUMBERS else set()
                self._unknown(_NUMBER - allowed, schema, place)
        return Rule(str(kind))

    # ---- combinations

    def _reference(self, schema: dict[str, Any], place: _Place) -> Expression:
        reference = schema["$ref"]
        found = self._resolve(reference)
        if found is None:
            return self._problem(place.key("$ref"), f"{reference!r} is not among the definitions of this schema")
        pointer, target = found
        if pointer in place.heads:
            return self._problem(place.key("$ref"), f"{reference!r} refers to itself")
        self._alone("$ref", schema, place)
        if pointer not in self._references:
            rule = self._references[pointer] = self._rule(_VALUE)
            self._rules[rule.name] = self._node(target, _Place(self._pointer + pointer, place.heads | {pointer}))
        return self._references[pointer]

    def _resolve(self, reference: str) -> tuple[str, Any] | None:
        """Pointer and target of a reference to the schema or to one of its definitions."""
        if reference == "#":
            return "", self._root
        place = re.fullmatch(r"#/(\$defs|definitions)/([^/]+)", reference)
        definitions = self._root.get(place[1], {}) if place and isinstance(self._root, dict) else {}
        name = unquote(place[2]).replace("~1", "/").replace("~0", "~") if place else ""
        if name not in definitions or (isinstance(definitions[name], dict) and "$id" in definitions[name]):
            return None
        return reference[1:], definitions[name]

    def _followed(self, schema: Any) -> Any:
        """A schema, or what it refers to."""
        for _ in range(8):
            if not isinstance(schema, dict) or schema.keys() & _ASSERTIONS != {"$ref"}:
                break
            found = self._resolve(schema["$ref"])
            schema = found[1] if found else None
        return schema

    def _all_of(self, schema: dict[str, Any], place: _Place) -> Expression:
        self._alone("allOf", schema, place)
        if len(schema["allOf"]) > 1:
            return self._problem(place.key("allOf"), "several schemas are not put together")
        return self._node(schema["allOf"][0], place.same("allOf", 0))

    def _union(self, schema: dict[str, Any], place: _Place) -> Expression:
        keyword = "oneOf" if "oneOf" in schema else "anyOf"
        alternatives = schema[keyword]
        if len(alternatives) > _MOST_ALTERNATIVES:
            return self._problem(place.key(keyword), f"more than {_MOST_ALTERNATIVES} alternatives")
        if keyword == "oneOf":
            alternatives = self._exclusive(alternatives, place.key("oneOf"))
        self._alone(keyword, schema, place)
        return choice(self._node(item, place.same(keyword, index)) for index, item in enumerate(alternatives))

    def _exclusive(self, alternatives: list[Any], pointer: str) -> list[Any]:
        """Alternatives of which only one can match; where a property tells them _apart, it becomes required."""
        targets = [self._followed(item) for item in alternatives]
        if all(_apart(one, other) for index, one in enumerate(targets) for other in targets[index + 1 :]):
            return alternatives
        for key in _properties_of(targets[0]):
            if _disjoint([_constants_of(self._followed(_properties_of(target).get(key))) for target in targets]):
                return [{**target, "required": [*target.get("required", ()), key]} for target in targets]
        self._problem(pointer, "nothing tells the alternatives _apart, so several could match")
        return alternatives

    def _constants(self, schema: dict[str, Any], place: _Place) -> Expression:
        keyword = "const" if "const" in schema else "enum"
        self._alone(keyword, schema, place, "type")
        values = [schema["const"]] if keyword == "const" else schema["enum"]
        if "type" in schema:
            kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            values = [value for value in values if any(_is_a(value, kind) for kind in kinds)]
        if not values:
            return self._problem(place.key(keyword), "no value is left to choose")
        texts = {_canonical(value): _text(value) for value in values}
        return sequence(choice(map(literal, texts.values())), _SPACE)

    # ---- values

    def _object(self, schema: dict[str, Any], place: _Place) -> Expression:
        properties, required = _properties_of(schema), dict.fromkeys(schema.get("required", ()))
        additional = schema.get("additionalProperties", True)
        self._unknown(_OBJECT - {"properties", "required", "additionalProperties"}, schema, place)
        if not properties and not required and additional is not False:
            if additional is True:
                return Rule("object")
            value = self._node(additional, place.inner("additionalProperties"))
            return _braces("{", _list(sequence(_ANY_STRING, literal(":"), _SPACE, value), 0, None), "}")
        named = {key: value for key, value in properties.items() if value is not False or key in required}
        named |= {key: additional for key in required if key not in properties}
        members = {}
        for key, value in named.items():
            inside = place.inner("properties", key) if key in properties else place.inner("additionalProperties")
            colon = (literal(_text(key)), _SPACE, literal(":"), _SPACE)
            members[key] = self._rule(sequence(*colon, self._node(value, inside)))
        return _braces("{", self._members(members, required), "}")

    def _members(self, members: Mapping[str, Expression], required: Mapping[str, None]) -> Expression:
        """The required members in order, then some of the others in order."""
        needed = [rule for key, rule in members.items() if key in required]
        others = [rule for key, rule in members.items() if key not in required]
        tail, starts = sequence(), []
        for rule in reversed(others):
            starts.append(sequence(rule, tail))
            tail = self._rule(sequence(Repeat(sequence(_COMMA, rule), 0, 1), tail))
        if needed:
            return sequence(*[part for rule in needed for part in (_COMMA, rule)][1:], tail)
        return Repeat(choice(reversed(starts)), 0, 1) if starts else sequence()

    def _array(self, schema: dict[str, Any], place: _Place) -> Expression:
        items, prefix = schema.get("items", True), schema.get("prefixItems", [])
        least, most = self._bounds("minItems", "maxItems", schema, place)
        allowed = {"items", "prefixItems", "minItems", "maxItems"}
        if schema.get("uniqueItems") is False:
            allowed.add("uniqueItems")
        self._unknown(_ARRAY - allowed, schema, place)
        if prefix:  # every described item, and no more
            if not least <= len(prefix) <= (len(prefix) if most is None else most):
                return self._problem(place.key("prefixItems"), "another number of items is asked for")
            first = [self._node(item, place.inner("prefixItems", index)) for index, item in enumerate(prefix)]
            return _braces("[", sequence(*[part for item in first for part in (_COMMA, item)][1:]), "]")
        if items is False or most == 0:
            return (
                _braces("[", sequence(), "]")
                if not least
                else self._problem(place.key("minItems"), "nothing can match")
            )
        if items is True and (least, most) == (0, None):
            return Rule("array")
        return _braces("[", _list(self._node(items, place.inner("items")), least, most), "]")

    def _string(self, schema: dict[str, Any], place: _Place) -> Expression:
        keyword = next((known for known in ("pattern", "format") if known in schema), "")
        if keyword:
            self._unknown(_STRING - {keyword}, schema, place)
        if keyword == "format":
            known = FORMATS.get(schema["format"])
            return _quoted(Terminal(known)) if known else self._problem(place.key("format"), "not enforced")
        if keyword == "pattern":
            try:
                return _quoted(pattern_grammar(schema["pattern"], most_repeats=_MOST_REPEATS))
            except PatternError as error:
                return self._problem(place.key("pattern"), str(error))
        least, most = self._bounds("minLength", "maxLength", schema, place)
        return _ANY_STRING if (least, most) == (0, None) else _quoted(Repeat(CHARACTER, least, most))

    def _bounds(self, low: str, high: str, schema: Mapping[str, Any], place: _Place) -> tuple[int, int | None]:
        """Limits of a repetition that can be written out."""
        for keyword in (low, high):
            if schema.get(keyword, 0) > _MOST_REPEATS:
                self._problem(place.key(keyword), f"more than {_MOST_REPEATS} repetitions are not written out")
                return 0, None
        least, most = int(schema.get(low, 0)), int(schema[high]) if high in schema else None
        if most is not None and most < least:
            self._problem(place.key(low), f"more than {high}")
            return 0, None
        return least, most


def _malformed(schema: Any) -> ValidationError | None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    found: ValidationError | None = best_match(
        Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(schema)
    )
    return found


def _list(item: Expression, least: int, most: int | None) -> Expression:
    """Items with commas between."""
    more = Repeat(sequence(_COMMA, item), max(least - 1, 0), None if most is None else most - 1)
    some = sequence(item, more) if most != 1 else item
    return some if least else Repeat(some, 0, 1)


def _braces(opening: str, inside: Expression, closing: str) -> Expression:
    return sequence(literal(opening), _SPACE, inside, literal(closing), _SPACE)


def _quoted(inside: Expression) -> Expression:
    return sequence(literal('"'), inside, literal('"'), _SPACE)


def _text(value: Any) -> str:
    """A value as JSON; halves of characters, which a grammar can't hold, as escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if any("\ud800" <= character <= "\udfff" for character in text) else text


def _is_a(value: Any, kind: str) -> bool:
    from jsonschema import Draft202012Validator

    return bool(Draft202012Validator.TYPE_CHECKER.is_type(value, kind))


def _canonical(value: Any) -> str:
    """A text that is the same for values that JSON Schema calls equal: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(json.loads(json.dumps(value), parse_float=_number), sort_keys=True)


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _kinds_of(schema: Any) -> set[str] | None:
    """The types that a schema allows, or None for any; `number` stands for `integer` too."""
    if not isinstance(schema, dict):
        return None
    kind = schema.get("type")
    values = _constants_of(schema)
    if kind is not None:
        found = set(kind) if isinstance(kind, list) else {kind}
    elif values is not None:
        found = {next(kind for kind in _TYPES if _is_a(json.loads(value), kind)) for value in values}
    else:
        return None
    return found | {"integer"} if "number" in found else found


def _constants_of(schema: Any) -> set[str] | None:
    """The values that `const` or `enum` allow, in _canonical form."""
    if not isinstance(schema, dict):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return None if values is None else set(map(_canonical, values))


def _disjoint(sets: list[set[str] | None]) -> bool:
    known = [each for each in sets if each]
    return len(known) == len(sets) and sum(map(len, known)) == len(set().union(*known))


def _apart(one: Any, other: Any) -> bool:
    """Whether no value can match both schemas, by its type or as a constant."""
    return any(_disjoint([of(one), of(other)]) for of in (_kinds_of, _constants_of))


def _properties_of(schema: Any) -> dict[str, Any]:
    found: dict[str, Any] = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return found
