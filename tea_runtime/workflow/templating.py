"""`{{ … }}` in workflows: one expression keeps its type, anything else becomes a text; what is missing is an error."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.utils import missing

from tea_models.errors import UsageError
from tea_runtime.workflow.template_limits import Budget, LimitedEnvironment

_BRACES = re.compile(r"\{\{[-+]?(.*?)[-+]?\}\}", re.DOTALL)


class _Missing(StrictUndefined):
    """A value that is not there: false in a test, `default` may replace it, everything else is an error."""

    def __bool__(self) -> bool:  # type: ignore[override]  # StrictUndefined's never returns
        return False

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        if self._undefined_obj is missing:
            return f"{self._undefined_name!r} is not defined"
        if isinstance(self._undefined_obj, Mapping):
            keys = ", ".join(str(key) for key in list(self._undefined_obj)[:12])
            return f"there is no key {self._undefined_name!r}" + (f" (there are: {keys})" if keys else "")
        return f"{type(self._undefined_obj).__name__} has no {self._undefined_name!r}"


class _Environment(LimitedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        # `state.items` means the key, as everywhere in a workflow, and the method only where there is no such key.
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


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
    try:
        with Budget():
            if isinstance(template, str):
                return _present(_expression(template)(**context))
            return template.render(**context)
    except UndefinedError as error:
        raise UsageError(f"{_shown(text)}: {error.message}", hint=_hint(text)) from None
    except SecurityError as error:
        raise UsageError(f"{_shown(text)}: not allowed in a template: {error.message}") from None
    except TemplateError as error:
        raise UsageError(f"{_shown(text)}: {error.message or error}") from None
    except Exception as error:  # noqa: BLE001 - whatever an expression of the author's raises
        raise UsageError(f"{_shown(text)}: {type(error).__name__}: {error}") from None


def _present(value: Any) -> Any:
    if isinstance(value, _Missing):
        raise UndefinedError(value._undefined_message)  # noqa: SLF001 - our own class
    return value


def _hint(text: str) -> str:
    if "state." in text or "state[" in text:
        return "give it with --input, or write a fallback: {{ state.key | default('…') }}"
    return ""


@functools.lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(undefined=_Missing, keep_trailing_newline=True)
    # Jinja's own escapes for HTML, which a model would see as backslashes.
    environment.filters["tojson"] = environment.filters["json"] = _to_json
    environment.filters["fromjson"] = json.loads
    environment.filters["sha256"] = lambda text: hashlib.sha256(str(text).encode()).hexdigest()
    environment.globals["len"] = len
    environment.limit()
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)


@functools.lru_cache(maxsize=512)
def _compile(text: str) -> Any:
    """None for a text without templates, the source of a single expression, or a template."""
    if not is_template(text):
        return None
    environment = _environment()
    try:
        body = environment.parse(text.strip()).body
        whole = _BRACES.fullmatch(text.strip())
        parts = body[0].nodes if len(body) == 1 and isinstance(body[0], nodes.Output) else []
        if whole and len(parts) == 1 and not isinstance(parts[0], nodes.TemplateData):
            _expression(whole[1].strip())
            return whole[1].strip()
        return environment.from_string(text)
    except TemplateSyntaxError as error:
        raise UsageError(f"{_shown(text)}: not a valid template: {error.message}") from None


@functools.lru_cache(maxsize=512)
def _expression(source: str) -> Any:
    return _environment().compile_expression(source, undefined_to_none=False)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "…"
