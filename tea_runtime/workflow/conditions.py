"""Conditions of edges and `goto`: true or false, a key of the state, an expression, or a template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tea_models.errors import UsageError
from tea_runtime.workflow import templating

_KEY = re.compile(r"[A-Za-z_]\w*")
_TEMPLATE = re.compile(r"\{\{[-+]?((?:(?!\}\}).)*?)[-+]?\}\}", re.DOTALL)
# A template that is all of a quoted text; a template; any other quoted text.
_PARTS = re.compile(rf"(['\"]){_TEMPLATE.pattern}\1|{_TEMPLATE.pattern}|'[^']*'|\"[^\"]*\"", re.DOTALL)
_FALSE = ("", "false", "0", "no", "none")
_TRUE = ("true", "1", "yes")
_ADVICE = "write the condition as one expression, such as: state.n < 3 and state.name == 'x'"


def decide(condition: bool | str, context: Mapping[str, Any]) -> bool:
    """Decide a condition by the names that it may use, such as `state`; a `UsageError` where it has no answer."""
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
    text = condition.lstrip("! \t\r\n")
    return text.rstrip(), condition[: -len(text) or None].count("!") % 2 == 1


def _as_template(text: str) -> str:
    """One `{{ … }}`; a condition with statements (`{% … %}`) stays as it is."""
    found = _TEMPLATE.match(text)
    if "{%" in text or (found and found.end() == len(text)):
        return text
    return "{{ " + _as_expression(text) + " }}"


def _as_expression(text: str) -> str:
    """The condition with each `{{ x }}` as `(x)`, and each `'{{ x }}'` as the text of x."""

    def replaced(part: re.Match[str]) -> str:
        quoted, plain = part[2], part[3]
        if quoted is None and plain is None:
            if _TEMPLATE.search(part[0]):
                raise UsageError(f"{text}: a template inside a quoted text", hint=_ADVICE)
            return part[0]
        if not (quoted or plain or "").strip():
            raise UsageError(f"{text}: an empty template", hint=_ADVICE)
        return f"({plain})" if quoted is None else f"(({quoted}) | string)"

    return _PARTS.sub(replaced, text)
