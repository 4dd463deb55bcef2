r"""A schema's `pattern` as a grammar for what stands between the quotes of a JSON text.

Python's own parser of regular expressions reads it, as it does in the validator that checks answers afterwards. What
the grammar lets through matches in Python's and in JavaScript's reading; where the two differ, or `\w` means letters of
all scripts, it lets less through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from re import _constants as codes  # type: ignore[attr-defined]  # the parse tree has no public name
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from tea_models.chat.gbnf import Expression, Repeat, Rule, characters, choice, literal, sequence

_Ranges = list[tuple[int, int]]

#: What may stand in a JSON text as it is: no quote, no backslash, no control character, no half of a character.
_PLAIN: _Ranges = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF)]
#: What may be written with an escape beside them.
_ESCAPED = '"\\\n\r\t'
_ALL: _Ranges = [(0, 0x10FFFF)]
_ASCII: _Ranges = [(0, 0x7E)]
_LINE_ENDS: _Ranges = [(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)]
_CATEGORIES: dict[Any, _Ranges] = {
    codes.CATEGORY_DIGIT: [(0x30, 0x39)],
    codes.CATEGORY_WORD: [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    codes.CATEGORY_SPACE: [(0x09, 0x0D), (0x1C, 0x20)],
}
_NOT_CATEGORIES = {
    codes.CATEGORY_NOT_DIGIT: codes.CATEGORY_DIGIT,
    codes.CATEGORY_NOT_WORD: codes.CATEGORY_WORD,
    codes.CATEGORY_NOT_SPACE: codes.CATEGORY_SPACE,
}
#: Rules that the grammar must have beside the pattern's own: any character of a JSON text.
CHARACTER = Rule("char")


class PatternError(Exception):
    """Why a pattern can't be enforced."""


def pattern_grammar(pattern: Any, *, most_repeats: int) -> Expression:
    """A grammar for the JSON texts in which a pattern is found, as `re.search` looks for it, or a PatternError.

    `most_repeats` is the largest count in `{m,n}` that may be written out.
    """
    if not isinstance(pattern, str):
        raise PatternError("expected a text")
    if "{," in pattern or "(?P" in pattern:
        raise PatternError("{,n} and (?P…) mean something else in JavaScript")
    try:
        tree = parser.parse(pattern)
        if tree.state.flags & ~re.UNICODE:
            raise PatternError("flags such as (?i) are not enforced")
        return _Writer(most_repeats).whole(list(tree))
    except re.error as error:
        raise PatternError(f"not a regular expression: {error.msg}") from None
    except (RecursionError, OverflowError):
        raise PatternError("nested too deeply, or too large") from None


class _Writer:
    def __init__(self, most_repeats: int) -> None:
        self.most_repeats = most_repeats
        self.repeats = 1

    def whole(self, items: list[Any], *, first: bool = True, last: bool = True) -> Expression:
        """Anchors count only at the ends; where there is none, anything may stand before or behind."""
        if len(items) == 1 and items[0][0] is codes.BRANCH:
            return choice(self.whole(list(branch), first=first, last=last) for branch in items[0][1][1])
        before: list[Expression] = [Repeat(CHARACTER, 0, None)]
        after = before
        if not first or items[:1] == [(codes.AT, codes.AT_BEGINNING)]:
            items, before = items[first:], []
        if not last or items[-1:] == [(codes.AT, codes.AT_END)]:
            items, after = items[: len(items) - last], []
        elif items and items[-1][0] is codes.BRANCH:
            items, after = items[:-1], [self.whole(items[-1:], first=False)]
        return sequence(*before, self.sequence(items), *after)

    def sequence(self, items: Iterable[Any]) -> Expression:
        return sequence(*(self.item(code, value) for code, value in items))

    def item(self, code: Any, value: Any) -> Expression:
        if code is codes.LITERAL:
            if 0xD800 <= value <= 0xDFFF:
                raise PatternError("half a character")
            return literal(json.dumps(chr(value), ensure_ascii=False)[1:-1])
        if code is codes.NOT_LITERAL:
            return self.one_of([(codes.NEGATE, None), (codes.LITERAL, value)])
        if code is codes.ANY:
            return _one_of(_without(_ALL, _LINE_ENDS))
        if code is codes.IN:
            return self.one_of(value)
        if code is codes.BRANCH:
            return choice(self.sequence(branch) for branch in value[1])
        if code is codes.SUBPATTERN and not value[1] and not value[2]:
            return self.sequence(value[3])
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            return self.repeat(*value)
        name = "^ or $ inside" if code is codes.AT else str(code).lower().replace("_", " ")
        raise PatternError(f"{name} is not enforced")

    def repeat(self, least: int, most: Any, items: Iterable[Any]) -> Expression:
        limit = None if most is codes.MAXREPEAT else int(most)
        before = self.repeats
        self.repeats *= max(limit or least, 1)
        if self.repeats > self.most_repeats:
            raise PatternError(f"more than {self.most_repeats} repetitions are not written out")
        item = self.sequence(items)
        self.repeats = before
        return Repeat(item, least, limit) if limit != 0 else sequence()

    def one_of(self, members: list[Any]) -> Expression:
        ranges: _Ranges = []
        allowed = _ALL
        negated = members[0][0] is codes.NEGATE
        for code, value in members[1:] if negated else members:
            if code is codes.LITERAL:
                ranges.append((value, value))
            elif code is codes.RANGE:
                ranges.append(value)
            elif value in _CATEGORIES:
                ranges += _CATEGORIES[value]
                allowed = _ASCII if negated else allowed
            elif not negated:
                ranges += _without(_ASCII, _CATEGORIES[_NOT_CATEGORIES[value]])
            else:
                raise PatternError("a class that excludes what is not in a class")
        return _one_of(_without(allowed, ranges) if negated else ranges)


def _one_of(ranges: _Ranges) -> Expression:
    plain = _common(_PLAIN, ranges)
    escaped = [literal(json.dumps(each)[1:-1]) for each in _ESCAPED if _common([(ord(each), ord(each))], ranges)]
    if not plain and not escaped:
        raise PatternError("a class of control characters")
    return choice([*([characters(plain)] if plain else []), *escaped])


def _common(one: _Ranges, other: _Ranges) -> _Ranges:
    both = ((max(low, start), min(high, end)) for low, high in one for start, end in other)
    return sorted({(low, high) for low, high in both if low <= high})


def _without(ranges: _Ranges, taken: _Ranges) -> _Ranges:
    for start, end in taken:
        ranges = _common([(0, start - 1), (end + 1, 0x10FFFF)], ranges)
    return ranges
