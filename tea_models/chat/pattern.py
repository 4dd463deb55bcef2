r"""Which regular expressions llama.cpp's converter turns into a grammar that means the same.

It copies nearly everything: `.` and `[^x]` let a quote end the JSON string, `\d` is unknown to grammars, a `|` outside
of parentheses splits the quotes apart. What is accepted here is what comes through unharmed.
"""

from __future__ import annotations

from typing import Any

_ESCAPED = frozenset("[]()|{}*+?")
_QUANTIFIERS = frozenset("*+?{")
_MOST_DEPTH = 50


def pattern_problem(pattern: Any, *, most_repeats: int) -> str | None:
    """Why a schema's `pattern` can't be enforced, or None if it can.

    Args:
        pattern: The regular expression.
        most_repeats: The largest count in `{m,n}` that may be written out.
    """
    if not isinstance(pattern, str):
        return "expected a text"
    if not pattern.startswith("^") or not pattern.endswith("$") or len(pattern) < 2:
        return "it must begin with ^ and end with $"
    return _Scanner(pattern[1:-1], most_repeats).problem()


class _Scanner:
    def __init__(self, body: str, most_repeats: int) -> None:
        self.body = body
        self.most_repeats = most_repeats
        self.place = 0
        self.depth = 0
        self.repeats = 1

    def problem(self) -> str | None:
        quantifiable = False
        while self.place < len(self.body):
            character = self.body[self.place]
            if character in _QUANTIFIERS:
                if not quantifiable:
                    return "a quantifier that follows nothing, or another one"
                found = self._count() if character == "{" else None
                if found:
                    return found
                self.place += 1 if character != "{" else 0
                quantifiable = False
                continue
            found = self._unit(character)
            if found:
                return found
            quantifiable = character not in "(|"
        if self.depth:
            return "a parenthesis is not closed"
        return None

    def _unit(self, character: str) -> str | None:
        self.place += 1
        if character in "(|)":
            return self._group(character)
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escape()
        if character in ".^$":
            return f"{character} is not enforced"
        if character in "]}":
            return f"{character} that closes nothing"
        return _unsafe(character)

    def _group(self, character: str) -> str | None:
        following = self.body[self.place : self.place + 1]
        if character == "(":
            self.depth += 1
            if self.depth > _MOST_DEPTH:
                return "nested too deeply"
            return "a group that begins with ?, or is empty" if following in ("?", ")", "|", "") else None
        if not self.depth:
            return "alternatives outside of parentheses" if character == "|" else "a parenthesis that closes nothing"
        if character == "|":
            return "an empty alternative" if following in ("|", ")", "") else None
        self.depth -= 1
        return None

    def _escape(self) -> str | None:
        escaped = self.body[self.place : self.place + 1]
        if escaped not in _ESCAPED or not escaped:
            return f"\\{escaped} is unknown to grammars"
        self.place += 1
        if self.body[self.place : self.place + 1] in _QUANTIFIERS and self.place < len(self.body):
            return "a quantifier after an escaped character"
        return None

    def _class(self) -> str | None:
        end = self.place
        members: list[str] = []
        while end < len(self.body) and self.body[end] != "]":
            if self.body[end] == "\\":
                if self.body[end + 1 : end + 2] not in ("[", "]"):
                    return f"\\{self.body[end + 1 : end + 2]} is unknown to grammars"
                end += 1
            members.append(self.body[end])
            end += 1
        if end >= len(self.body):
            return "a bracket is not closed"
        self.place = end + 1
        if not members:
            return "an empty class"
        if members[0] == "^":
            return "[^…] lets the quote through that ends the text"
        index = 0
        while index < len(members):
            low = high = members[index]
            if index + 2 < len(members) and members[index + 1] == "-":
                high = members[index + 2]
                index += 2
            index += 1
            if high < low:
                return "a range from high to low"
            found = _unsafe(low) or _unsafe(high)
            if found or any(low <= special <= high for special in '"\\\x7f'):
                return "a class with quotes, backslashes or control characters"
        return None

    def _count(self) -> str | None:
        end = self.body.find("}", self.place)
        numbers = self.body[self.place + 1 : end].split(",") if end > 0 else []
        self.place = end + 1
        if not 1 <= len(numbers) <= 2 or not all(part.isdecimal() or not part for part in numbers) or not any(numbers):
            return "a quantifier that is no {m}, {m,} or {m,n}"
        least = int(numbers[0] or 0)
        most = least if len(numbers) == 1 else int(numbers[1] or least)
        self.repeats *= max(most, 1)
        if most < least:
            return "a quantifier whose maximum is below its minimum"
        if self.repeats > self.most_repeats:
            return f"more than {self.most_repeats} repetitions are not written out"
        return None


def _unsafe(character: str) -> str | None:
    if character < " " or character in '"\\\x7f' or "\ud800" <= character <= "\udfff":
        return "quotes, backslashes and control characters are not escaped"
    return None
