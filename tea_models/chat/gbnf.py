"""GBNF, the grammars of llama.cpp, as a small tree: it can be written out, and asked whether a finite text matches.

The syntax is that of llama.cpp's `grammars/README.md`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

_IN_CLASS = "[]^-\\"
#: The rules of JSON. Two escapes for halves of characters would count as one character: only whole ones have escapes.
JSON = {
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" ["\\/bfnrt] | "\\u" ([0-9abcefABCEF] hex hex hex | [dD] [0-7] hex hex)',
    "hex": "[0-9a-fA-F]",
    "string": r'"\"" char* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "object": '"{" (string ": " value (", " string ": " value)*)? "}"',
    "array": '"[" (value (", " value)*)? "]"',
    "value": "object | array | string | number | boolean | null",
}
_DAY = (
    '(("0" [13578] | "1" [02]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])'
    ' | ("0" [469] | "11") "-" ("0" [1-9] | [12] [0-9] | "30") | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]))'
)
_HOUR = '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]'
_DATE = f'[1-9] [0-9]{{3}} "-" {_DAY}'
_TIME = f'{_HOUR} ":" [0-5] [0-9] ("." [0-9]{{1,6}})? ("Z" | [+-] {_HOUR})'
#: Formats of texts. A few valid ones are never generated: 29 February, years before 1000, leap seconds.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": 'hex{8} ("-" hex{4}){3} "-" hex{12}',
}
FORMATS |= {f"uuid{v}": f'hex{{8}} "-" hex{{4}} "-{v}" hex{{3}} "-" [89abAB] hex{{3}} "-" hex{{12}}' for v in "12345"}


@dataclass(frozen=True, slots=True)
class Terminal:
    """Characters, in GBNF's own words: `"text"` or `[a-z]`."""

    gbnf: str


@dataclass(frozen=True, slots=True)
class Rule:
    name: str


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """An expression at least `least` and at most `most` times (None: no limit)."""

    item: Expression
    least: int
    most: int | None


Expression = Terminal | Rule | Sequence | Choice | Repeat


def literal(text: str) -> Terminal:
    return Terminal('"' + "".join(_escaped(character, '"\\') for character in text) + '"')


def characters(ranges: Iterable[tuple[int, int]]) -> Terminal:
    """One character of these ranges of code points."""
    parts = [
        _escaped(chr(low), _IN_CLASS) + (f"-{_escaped(chr(high), _IN_CLASS)}" if high > low else "")
        for low, high in ranges
    ]
    return Terminal(f"[{''.join(parts)}]")


def sequence(*items: Expression) -> Expression:
    return items[0] if len(items) == 1 else Sequence(items)


def choice(items: Iterable[Expression]) -> Expression:
    different = tuple(dict.fromkeys(items))
    return different[0] if len(different) == 1 else Choice(different)


def optional(item: Expression) -> Expression:
    return Repeat(item, 0, 1)


def is_finite(expression: Expression, finite: Collection[str]) -> bool:
    """Whether some finite text matches, given the names of the rules for which that is known."""
    match expression:
        case Rule(name):
            return name in finite
        case Sequence(items):
            return all(is_finite(item, finite) for item in items)
        case Choice(items):
            return any(is_finite(item, finite) for item in items)
        case Repeat(item, least, _):
            return not least or is_finite(item, finite)
    return True


def finite_rules(rules: Mapping[str, Expression], known: Collection[str]) -> set[str]:
    """The rules that some finite text matches."""
    found = set(known)
    while more := {name for name, rule in rules.items() if name not in found and is_finite(rule, found)}:
        found |= more
    return found


def write(expression: Expression, *, inner: bool = False) -> str:
    """The expression in GBNF; `inner` where it stands beside others."""
    match expression:
        case Terminal(gbnf):
            return gbnf
        case Rule(name):
            return name
        case Repeat(item, least, most):
            mark = {(0, 1): "?", (0, None): "*", (1, None): "+"}.get((least, most))
            count = f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"
            unit = f"({write(item)})" if isinstance(item, Repeat) else write(item, inner=True)
            return unit + (mark or count)
        case Sequence(items):
            text = " ".join(write(item, inner=True) for item in items) or '""'
            return f"({text})" if inner else text
        case Choice(items):
            text = " | ".join(write(item, inner=isinstance(item, Choice)) for item in items)
            return f"({text})" if inner else text


def _escaped(character: str, special: str) -> str:
    code = ord(character)
    if 0x20 <= code < 0x7F and character not in special:
        return character
    if character in '"\\[]':
        return f"\\{character}"
    if code <= 0x7F:
        return f"\\x{code:02X}"
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
