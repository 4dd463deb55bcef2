"""Conditions of edges and `goto`: true or false, a key of the state, an expression, or a template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tea_models.errors import UsageError
from tea_runtime.workflow import templating

_KEY = re.compile(r"[A-Za-z_]\w*")
_TEMPLATE = re.compile(r"\{\{[-+]?(.*?)[-+]?\}\}", re.DOTALL)
_FALSE = ("", "false", "0", "no", "none")
_TRUE = ("true", "1", "yes")
_ADVICE = "write the condition as one expression, such as: state.n < 3 and state.name == 'x'"


def decide(condition: bool | str, context: Mapping[str, Any]) -> bool:
    """Decide a condition by the names that it may use, such as `state`.

    A bare name is a key of the state, and false where it is missing; `!` negates. `{{ state.n }} < 3` means what
    `state.n < 3` means: the values are compared, not their texts.

    Raises:
        UsageError: It does not parse, uses something that is not there, or comes out as neither true nor false.
    """
    if isinstance(condition, bool):
        return condition
    text, negated = _negation(condition)
    if _KEY.fullmatch(text) and text.lower() not in ("true", "false"):
        state = context.get("state")
        known = isinstance(state, Mapping) and bool(state.get(text))
        return known != negated
    value = templating.render(_as_template(text), context)
    if isinstance(value, str):
        word = value.strip().lower()
        if "{%" in text and word not in (*_FALSE, *_TRUE):
            raise UsageError(f"the condition comes out as the text {value.strip()!r}", hint=_ADVICE)
        value = word not in _FALSE
    return bool(value) != negated


def check(condition: bool | str) -> None:
    """Parse a condition without deciding it; raises as `decide` does."""
    if isinstance(condition, str):
        templating.check(_as_template(_negation(condition)[0]))


def _negation(condition: str) -> tuple[str, bool]:
    text = condition.strip()
    return (text[1:].strip(), True) if text.startswith("!") else (text, False)


def _as_template(text: str) -> str:
    """One `{{ … }}`; a condition with statements (`{% … %}`) stays as it is."""
    found = _TEMPLATE.match(text)
    if "{%" in text or (found and found.end() == len(text)):
        return text
    return "{{ " + _as_expression(text) + " }}"


def _as_expression(text: str) -> str:
    """The condition with each `{{ x }}` as `(x)`, and each `'{{ x }}'` as the text of x."""
    parts: list[str] = []
    quote = ""
    position = 0
    while position < len(text):
        found = _TEMPLATE.match(text, position)
        if found is None:
            character = text[position]
            if character in "'\"":
                quote = "" if character == quote else quote or character
            parts.append(character)
            position += 1
            continue
        position = found.end()
        if not found[1].strip():
            raise UsageError(f"{text}: an empty template", hint=_ADVICE)
        if not quote:
            parts.append(f"({found[1]})")
        elif parts[-1] == quote and text[position : position + 1] == quote:
            parts[-1] = f"(({found[1]}) | string)"
            quote = ""
            position += 1
        else:
            raise UsageError(f"{text}: a template inside a quoted text", hint=_ADVICE)
    return "".join(parts)
