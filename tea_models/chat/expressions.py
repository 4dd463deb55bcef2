"""`{{ … }}` of workflows, evaluated in the worker process: its limits of time and memory hold for them too.

Imported by the worker process only. Other than chat templates they keep the type of a single expression, and what is
missing is an error.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2.exceptions import TemplateRuntimeError, UndefinedError
from jinja2.runtime import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

_CACHED = 256
_SCALARS = (str, int, float, bool, type(None))


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


class _Environment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        # `state.items` means the key, as everywhere in a workflow, and the method only where there is no such key.
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


class Expressions:
    """Compiles and evaluates the templates of workflows."""

    def __init__(self) -> None:
        environment = _Environment(undefined=_Missing, keep_trailing_newline=True)
        # Jinja's own escapes for HTML, which a model would see as backslashes.
        environment.filters["tojson"] = environment.filters["json"] = _to_json
        environment.filters["fromjson"] = json.loads
        environment.filters["sha256"] = lambda text: hashlib.sha256(str(text).encode()).hexdigest()
        environment.globals["len"] = len
        self.environment = environment
        self.compiled = functools.lru_cache(_CACHED)(self._compiled)

    def value(self, source: str, names: Mapping[str, Any], *, expression: bool) -> Any:
        """The value of an expression, or the text of a template, as JSON has it."""
        return _json(self.compiled(source, expression)(**names))

    def _compiled(self, source: str, expression: bool) -> Any:
        if expression:
            return self.environment.compile_expression(source, undefined_to_none=False)
        return self.environment.from_string(source).render


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=_json)


def _json(value: Any) -> Any:
    """A value that the parent can be sent: tuples and whatever yields values become lists."""
    if isinstance(value, _Missing):
        raise UndefinedError(value._undefined_message)  # noqa: SLF001 - our own class
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TemplateRuntimeError(f"the result has the key {key!r}, and only texts can be keys of a result")
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range | Iterator):
        return [_json(item) for item in value]
    if callable(value):
        raise TemplateRuntimeError("the result is a function that is not called; write () behind it")
    return str(value)
