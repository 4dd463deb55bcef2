"""`{{ … }}` in workflows, and conditions: one expression keeps its type, anything else becomes a text.

What only follows a path (`{{ state.reply }}`) is looked up here. Everything else is evaluated in the worker process of
`tea_models.chat.sandbox`, which limits time, memory and output.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateSyntaxError

from tea_models.chat.sandbox import SANDBOX, Limits, broken_limit
from tea_models.errors import UsageError
from tea_models.yamlfile import nearest

LIMITS = Limits(seconds=10.0, output=64 * 1024 * 1024)

_KEY = re.compile(r"[A-Za-z_]\w*")
_TEMPLATE = re.compile(r"\{\{[-+]?((?:(?!\}\}).)*?)[-+]?\}\}", re.DOTALL)
# A template that is all of a quoted text; a template; any other quoted text.
_PARTS = re.compile(rf"(['\"]){_TEMPLATE.pattern}\1|{_TEMPLATE.pattern}|'[^']*'|\"[^\"]*\"", re.DOTALL)
_FALSE = ("", "false", "0", "no", "none")
_TRUE = ("true", "1", "yes")
_ADVICE = "write the condition as one expression, such as: state.n < 3 and state.name == 'x'"
_BRACES = re.compile(r"\{\{[-+]?(.*?)[-+]?\}\}", re.DOTALL)
PARSER = Environment(autoescape=False)  # noqa: S701 - it renders nothing
_FILTERS = sorted({*PARSER.filters, "json", "fromjson", "sha256"})
_NOT_FOUND = object()


class _Template(NamedTuple):
    source: str  # the text, or the expression alone
    expression: bool  # whether the text is a single expression
    path: tuple[str | int, ...] | None  # where an expression that only follows a path leads, from a name on
    uses: Mapping[str, frozenset[str] | None]  # its names with the keys asked of each; None: the whole value


def render(value: Any, context: Mapping[str, Any]) -> Any:
    """Fill in the templates of a text by the names they may use (`state`, …); other values stay as they are."""
    template = _compile(value) if isinstance(value, str) else None
    if template is None:
        return value
    if template.path is not None:
        found = _follow(context, template.path)
        if found is not _NOT_FOUND:
            return found
    names = {name: _needed(context[name], keys) for name, keys in template.uses.items() if name in context}
    result = SANDBOX.evaluate(template.source, names, expression=template.expression, limits=LIMITS)
    if "error" in result:
        absent = result["kind"] == "undefined" and ("state." in value or "state[" in value)
        hint = "give it with --input, or write a fallback: {{ state.key | default('…') }}" if absent else ""
        raise UsageError(f"{_shown(value)}: {_problem(result)}", hint=hint)
    return result["value"]


def is_template(value: Any) -> bool:
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value)


def texts(value: Any) -> Iterator[str]:
    """All texts in a value, in lists and mappings too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts(item)


def check(value: Any) -> None:
    """Parse every template of a value without running it; a `UsageError` where one does not parse."""
    for text in texts(value):
        _compile(text)


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
    words = {"syntax": "not a valid template: ", "security": "not allowed in a template: "}
    if kind in ("undefined", "raised", *words) or kind.startswith("Template"):
        return words.get(kind, "") + message
    return broken_limit(result, LIMITS) or f"{kind}: {message}"


@functools.lru_cache(maxsize=512)
def _compile(text: str) -> _Template | None:
    """A template, or None for a text without one."""
    if not is_template(text):
        return None
    try:
        tree = PARSER.parse(text.strip())
        for kind, known in ((nodes.Filter, _FILTERS), (nodes.Test, list(PARSER.tests))):
            for used in tree.find_all(kind):
                if used.name not in known:
                    problem = f"{_shown(text)}: there is no {kind.__name__.lower()} {used.name!r}"
                    raise UsageError(problem, hint=nearest(used.name, known))
        whole = _BRACES.fullmatch(text.strip())
        parts = tree.body[0].nodes if len(tree.body) == 1 and isinstance(tree.body[0], nodes.Output) else []
        if whole and len(parts) == 1 and not isinstance(parts[0], nodes.TemplateData):
            return _Template(whole[1].strip(), True, _path(parts[0]), _uses(tree))
        return _Template(text, False, None, _uses(tree))
    except (TemplateSyntaxError, ValueError) as error:  # also: a number of thousands of digits
        raise UsageError(f"{_shown(text)}: not a valid template: {getattr(error, 'message', error)}") from None
    except RecursionError:  # parentheses without end
        raise UsageError(f"{_shown(text)}: not a valid template: nested too deeply") from None


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
    counts = Counter(name.name for name in tree.find_all(nodes.Name))
    for name, key in keys_asked(tree):
        keys.setdefault(name, set()).add(key)
        counts[name] -= 1
    return {name: frozenset(keys[name]) if name in keys and not left else None for name, left in counts.items()}


def keys_asked(tree: nodes.Node) -> Iterator[tuple[str, str]]:
    """A name and the key that is asked of it, wherever a template does that (`state.x`, `state['x']`)."""
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        inner, step = node.node, _step(node)  # type: ignore[attr-defined]  # both have it
        if isinstance(inner, nodes.Name) and isinstance(step, str):
            yield inner.name, step


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "…"


def decide(condition: bool | str, context: Mapping[str, Any]) -> bool:
    """Decide a condition by the names that it may use, such as `state`; a `UsageError` where it has no answer."""
    if isinstance(condition, bool):
        return condition
    text, negated = _negation(condition)
    if _KEY.fullmatch(text) and text.lower() not in ("true", "false"):
        state = context.get("state")
        known = isinstance(state, Mapping) and bool(state.get(text))
        return known != negated
    value = render(_as_template(text), context)
    if isinstance(value, str):
        word = value.strip().lower()
        if "{%" in text and word not in (*_FALSE, *_TRUE):
            raise UsageError(f"the condition comes out as the text {value.strip()!r}", hint=_ADVICE)
        value = word not in _FALSE
    return bool(value) != negated


def check_condition(condition: bool | str) -> None:
    """Parse a condition without deciding it; raises as `decide` does."""
    if isinstance(condition, str):
        check(_as_template(_negation(condition)[0]))


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
