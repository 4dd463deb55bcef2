"""`{{ … }}` in workflows: one expression keeps its type, anything else becomes a text; what is missing is an error.

What only follows a path (`{{ state.reply }}`) is looked up here. Everything else is evaluated in the worker process of
`tea_models.chat.sandbox`, which limits time, memory and output.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateSyntaxError

from tea_models.chat.sandbox import SANDBOX, Limits, broken_limit
from tea_models.errors import UsageError
from tea_models.yamlfile import nearest

LIMITS = Limits(seconds=10.0, output=64 * 1024 * 1024)

_BRACES = re.compile(r"\{\{[-+]?(.*?)[-+]?\}\}", re.DOTALL)
_PARSER = Environment(autoescape=False)  # noqa: S701 - it renders nothing
_FILTERS = sorted({*_PARSER.filters, "json", "fromjson", "sha256"})
_NOT_FOUND = object()


@dataclass(frozen=True, slots=True)
class _Template:
    """A text with templates in it.

    Attributes:
        source: The text, or the expression alone.
        expression: Whether the text is a single expression.
        path: Where an expression that only follows a path leads, from a name on; else None.
        uses: The names it uses, each with the keys that it asks for, or None where it uses the whole value.
    """

    source: str
    expression: bool
    path: tuple[str | int, ...] | None
    uses: Mapping[str, frozenset[str] | None]


def render(value: Any, context: Mapping[str, Any]) -> Any:
    """Replace the templates in a value, in lists and mappings too.

    Args:
        value: Plain data as it comes from YAML.
        context: Names that templates may use: `state`, `variables`, …

    Raises:
        UsageError: A template does not parse, or uses something that is not there.
    """
    if isinstance(value, str):
        return _render_text(value, context)
    if isinstance(value, Mapping):
        return {key: render(item, context) for key, item in value.items()}
    if isinstance(value, list):
        return [render(item, context) for item in value]
    return value


def is_template(value: Any) -> bool:
    """Tell whether a value is a text with a template in it."""
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value)


def check(value: Any) -> None:
    """Parse every template of a value without running it.

    Raises:
        UsageError: One does not parse.
    """
    if isinstance(value, str):
        _compile(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            check(item)
    elif isinstance(value, list):
        for item in value:
            check(item)


def _render_text(text: str, context: Mapping[str, Any]) -> Any:
    template = _compile(text)
    if template is None:
        return text
    if template.path is not None:
        value = _follow(context, template.path)
        if value is not _NOT_FOUND:
            return value
    names = {name: _needed(context[name], keys) for name, keys in template.uses.items() if name in context}
    result = SANDBOX.evaluate(template.source, names, expression=template.expression, limits=LIMITS)
    if "error" in result:
        raise UsageError(
            f"{_shown(text)}: {_problem(result)}", hint=_hint(text) if result["kind"] == "undefined" else ""
        )
    return result["value"]


def _follow(context: Mapping[str, Any], path: tuple[str | int, ...]) -> Any:
    """What a path leads to, of whatever type it is; `_NOT_FOUND` also where finding it takes more than a look."""
    value: Any = context
    for key in path:
        if isinstance(value, Mapping):
            value = value.get(key, _NOT_FOUND)
        elif isinstance(value, list | tuple) and isinstance(key, int) and -len(value) <= key < len(value):
            value = value[key]
        elif isinstance(key, str) and not key.startswith("_") and not isinstance(value, type):
            value = getattr(value, key, _NOT_FOUND)
            if callable(value):
                return _NOT_FOUND
        else:
            return _NOT_FOUND
        if value is _NOT_FOUND:
            return value
    return value


def _needed(value: Any, keys: frozenset[str] | None) -> Any:
    """A mapping of which only some keys are looked at, with nothing under the others: a state may hold anything."""
    if keys is None or not isinstance(value, Mapping) or any(hasattr(dict, key) and key not in value for key in keys):
        return value
    return {key: item if key in keys else None for key, item in value.items()}


def _problem(result: Mapping[str, Any]) -> str:
    kind, message = result["kind"], str(result["error"])
    match kind:
        case "undefined" | "raised":
            return message
        case "syntax":
            return f"not a valid template: {message}"
        case "security":
            return f"not allowed in a template: {message}"
    if kind.startswith("Template"):
        return message
    return broken_limit(result, LIMITS) or f"{kind}: {message}"


def _hint(text: str) -> str:
    if "state." in text or "state[" in text:
        return "give it with --input, or write a fallback: {{ state.key | default('…') }}"
    return ""


@functools.lru_cache(maxsize=512)
def _compile(text: str) -> _Template | None:
    """A template, or None for a text without one."""
    if not is_template(text):
        return None
    try:
        tree = _PARSER.parse(text.strip())
        for kind, known in ((nodes.Filter, _FILTERS), (nodes.Test, list(_PARSER.tests))):
            for used in tree.find_all(kind):
                if used.name not in known:
                    what = kind.__name__.lower()
                    raise UsageError(
                        f"{_shown(text)}: there is no {what} {used.name!r}", hint=nearest(used.name, known)
                    )
        whole = _BRACES.fullmatch(text.strip())
        parts = tree.body[0].nodes if len(tree.body) == 1 and isinstance(tree.body[0], nodes.Output) else []
        if whole and len(parts) == 1 and not isinstance(parts[0], nodes.TemplateData):
            return _Template(whole[1].strip(), True, _path(parts[0]), _uses(tree))
        return _Template(text, False, None, _uses(tree))
    except TemplateSyntaxError as error:
        raise UsageError(f"{_shown(text)}: not a valid template: {error.message}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; parentheses without end
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"{_shown(text)}: not a valid template: {reason}") from None


def _path(node: nodes.Node) -> tuple[str | int, ...] | None:
    """The path that an expression follows, or None for another kind of expression."""
    steps: list[str | int] = []
    while not isinstance(node, nodes.Name):
        step = _step(node)
        if step is None:
            return None
        steps.append(step)
        node = node.node  # type: ignore[attr-defined]  # both kinds of steps have it
    return (node.name, *reversed(steps))


def _step(node: nodes.Node) -> str | int | None:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        key = node.arg.value
        return key if type(key) in (str, int) else None
    return None


def _uses(tree: nodes.Template) -> dict[str, frozenset[str] | None]:
    keys: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for name in tree.find_all(nodes.Name):
        counts[name.name] = counts.get(name.name, 0) + 1
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        inner, step = node.node, _step(node)  # type: ignore[attr-defined]  # both have it
        if isinstance(inner, nodes.Name) and isinstance(step, str):
            keys.setdefault(inner.name, set()).add(step)
            counts[inner.name] -= 1
    return {name: frozenset(keys[name]) if name in keys and not left else None for name, left in counts.items()}


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "…"
