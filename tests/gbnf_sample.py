"""Random texts that a GBNF grammar lets through, and a plain JSON Schema validator to check them with."""

from __future__ import annotations

import json
import random
import re
from typing import Any
from urllib.parse import unquote

_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:\\.|[^"\\])*")|(?P<set>\[(?:\\.|[^\]\\])*\])|(?P<name>[a-zA-Z0-9-]+)|(?P<mark>[()|?*+]))'
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\\"\[\]])")


def _plain(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        code = match.group(1)
        return {"t": "\t", "r": "\r", "n": "\n"}.get(code) or (chr(int(code[1:], 16)) if len(code) > 1 else code)

    rest = _ESCAPE.sub("", text)
    assert "\\" not in rest, f"an escape that grammars don't know: {text!r}"
    return _ESCAPE.sub(value, text)


class Grammar:
    """A parsed grammar. Raises where llama.cpp's parser would."""

    def __init__(self, text: str) -> None:
        self.rules: dict[str, Any] = {}
        for line in text.splitlines():
            if line.strip():
                name, _, body = line.partition(" ::= ")
                assert re.fullmatch("[a-zA-Z0-9-]+", name), name
                tokens = []
                place = 0
                while place < len(body.rstrip()):
                    match = _TOKEN.match(body, place)
                    assert match, f"{name}: {body[place:]!r}"
                    tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
                    place = match.end()
                tree, rest = self._alternatives(tokens)
                assert not rest, f"{name}: {rest}"
                self.rules[name] = tree
        for name in self._used():
            assert name in self.rules, f"undefined rule {name}"

    def _used(self) -> set[str]:
        found = set()

        def walk(tree: Any) -> None:
            if tree[0] == "name":
                found.add(tree[1])
            for part in tree[1:]:
                if isinstance(part, list):
                    for item in part:
                        walk(item)
                elif isinstance(part, tuple):
                    walk(part)

        for tree in self.rules.values():
            walk(tree)
        return found

    def _alternatives(self, tokens: list[tuple[str, str]]) -> tuple[Any, list[tuple[str, str]]]:
        choices: list[Any] = [[]]
        while tokens and tokens[0] != ("mark", ")"):
            kind, text = tokens[0]
            tokens = tokens[1:]
            if (kind, text) == ("mark", "|"):
                choices.append([])
                continue
            if (kind, text) == ("mark", "("):
                unit, tokens = self._alternatives(tokens)
                assert tokens[0] == ("mark", ")")
                tokens = tokens[1:]
            elif kind == "text":
                unit = ("text", _plain(text[1:-1]))
            elif kind == "set":
                unit = self._set(text[1:-1])
            else:
                assert kind == "name", text
                unit = ("name", text)
            while tokens and tokens[0] in (("mark", "?"), ("mark", "*"), ("mark", "+")):
                unit = ("repeat", unit, tokens[0][1])
                tokens = tokens[1:]
            choices[-1].append(unit)
        return ("choice", [("sequence", choice) for choice in choices]), tokens

    def _set(self, body: str) -> Any:
        negated = body.startswith("^")
        text = _plain(body[1:] if negated else body)
        ranges = []
        index = 0
        while index < len(text):
            if index + 2 < len(text) and text[index + 1] == "-":
                ranges.append((text[index], text[index + 2]))
                index += 3
            else:
                ranges.append((text[index], text[index]))
                index += 1
        return ("set", negated, ranges)

    def sample(self, rng: random.Random, room: int = 400) -> str:
        """One random text; after `room` choices the shortest way out is taken."""
        pieces: list[str] = []
        self.room = room
        self._emit(("name", "root"), rng, pieces, 0)
        return "".join(pieces)

    def _emit(self, tree: Any, rng: random.Random, pieces: list[str], depth: int) -> None:
        self.room -= 1
        tired = self.room < 0 or depth > 60
        match tree[0]:
            case "text":
                pieces.append(tree[1])
            case "name":
                self._emit(self.rules[tree[1]], rng, pieces, depth + 1)
            case "sequence":
                for part in tree[1]:
                    self._emit(part, rng, pieces, depth)
            case "choice":
                choices = tree[1]
                if tired:
                    choices = [min(choices, key=lambda choice: self._cost(choice, 8))]
                self._emit(rng.choice(choices), rng, pieces, depth)
            case "repeat":
                least = 1 if tree[2] == "+" else 0
                most = 1 if tree[2] == "?" else 4
                for _ in range(least if tired else rng.randint(least, most)):
                    self._emit(tree[1], rng, pieces, depth)
            case "set":
                _, negated, ranges = tree
                if negated:
                    pool = [c for c in 'ab"\\é\n\x01,:{} ☃/' if not any(low <= c <= high for low, high in ranges)]
                    pieces.append(rng.choice(pool))
                else:
                    low, high = rng.choice(ranges)
                    pieces.append(chr(rng.randint(ord(low), ord(high))))

    def _cost(self, tree: Any, depth: int) -> int:
        if depth == 0:
            return 1000
        match tree[0]:
            case "name":
                return 1 + self._cost(self.rules[tree[1]], depth - 1)
            case "sequence":
                return sum(self._cost(part, depth) for part in tree[1])
            case "choice":
                return min(self._cost(choice, depth) for choice in tree[1])
            case "repeat":
                return self._cost(tree[1], depth) if tree[2] == "+" else 0
        return 1


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _is(value: Any, kind: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "null": value is None,
        "boolean": isinstance(value, bool),
        "number": number,
        "integer": number and value not in (float("inf"), float("-inf")) and value == int(value),
        "string": isinstance(value, str),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }[kind]


def valid(value: Any, schema: Any, root: Any) -> bool:
    """Whether a value matches a schema, by the specification (formats by regular expressions)."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        target = root
        for part in schema["$ref"][1:].split("/")[1:]:
            target = target[unquote(part).replace("~1", "/").replace("~0", "~")]
        if not valid(value, target, root):
            return False
    checks = {
        "type": lambda want: any(_is(value, kind) for kind in ([want] if isinstance(want, str) else want)),
        "const": lambda want: _same(value, want),
        "enum": lambda want: any(_same(value, item) for item in want),
        "anyOf": lambda want: any(valid(value, item, root) for item in want),
        "oneOf": lambda want: sum(valid(value, item, root) for item in want) == 1,
        "allOf": lambda want: all(valid(value, item, root) for item in want),
        "not": lambda want: not valid(value, want, root),
    }
    if not all(check(schema[key]) for key, check in checks.items() if key in schema):
        return False
    if isinstance(value, dict):
        return _object(value, schema, root)
    if isinstance(value, list):
        return _array(value, schema, root)
    if isinstance(value, str):
        return _string(value, schema)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value >= schema.get("minimum", value) and value <= schema.get("maximum", value)
    return True


def _object(value: dict[str, Any], schema: Any, root: Any) -> bool:
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    return (
        all(name in value for name in schema.get("required", []))
        and all(valid(item, properties.get(name, others), root) for name, item in value.items())
        and schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value))
    )


def _array(value: list[Any], schema: Any, root: Any) -> bool:
    prefix = schema.get("prefixItems", [])
    rest = schema.get("items", True)
    if isinstance(rest, list):
        prefix, rest = rest, True
    return (
        schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        and all(valid(item, prefix[i] if i < len(prefix) else rest, root) for i, item in enumerate(value))
        and (not schema.get("uniqueItems") or len({json.dumps(item) for item in value}) == len(value))
    )


def _string(value: str, schema: Any) -> bool:
    formats = {
        "date": r"\d{4}-\d\d-\d\d",
        "time": r"\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?",
        "date-time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?",
        "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
        "email": r"[^@]+@[^@]+",
    }
    return (
        schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        and ("pattern" not in schema or re.search(schema["pattern"], value) is not None)
        and ("format" not in schema or re.fullmatch(formats[schema["format"]], value) is not None)
    )
