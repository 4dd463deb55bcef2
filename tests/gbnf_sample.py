"""Random texts that a GBNF grammar lets through."""

from __future__ import annotations

import random
import re
from typing import Any

_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:\\.|[^"\\])*")|(?P<set>\[(?:\\.|[^\]\\])*\])|(?P<name>[a-zA-Z0-9-]+)|(?P<mark>[()|?*+])|(?P<count>\{\d+(?:,\d*)?\}))'
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
            while tokens and (tokens[0][0] == "count" or tokens[0] in (("mark", "?"), ("mark", "*"), ("mark", "+"))):
                unit = ("repeat", unit, *_bounds(tokens[0][1]))
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
                least, most = tree[2], min(tree[3], tree[2] + 4)
                for _ in range(least if tired else rng.randint(least, most)):
                    self._emit(tree[1], rng, pieces, depth)
            case "set":
                _, negated, ranges = tree
                if negated:
                    pool = [c for c in 'ab"\\é\n\x01,:{} ☃/' if not any(low <= c <= high for low, high in ranges)]
                    pieces.append(rng.choice(pool))
                else:
                    low, high = rng.choice(ranges)
                    code = rng.choice([ord(low), ord(high), rng.randint(ord(low), ord(high))])
                    pieces.append(chr(code if not 0xD800 <= code <= 0xDFFF else ord(low)))

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
                return self._cost(tree[1], depth) * tree[2]
        return 1


def _bounds(mark: str) -> tuple[int, int]:
    """The least and the most that a repetition allows; no limit is a large number here."""
    if mark in "?*+":
        return {"?": (0, 1), "*": (0, 99), "+": (1, 99)}[mark]
    low, comma, high = mark[1:-1].partition(",")
    return int(low), int(high) if high else 99 if comma else int(low)
