"""Limits for the templates of workflows: a slip such as `{{ 'a' * 10**10 }}` ends with a message, not with the machine.

Jinja's sandbox keeps templates away from Python's internals and limits `range`; it limits neither what loops in loops
cost nor how much a product or a filter makes. Here each rendering has a budget of steps (turns of loops, calls), of
sizes (characters and items that it makes) and of time.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Mapping, Sized
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from jinja2 import nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jinja2.runtime import Context

STEPS = 500_000
SIZE = 100_000_000
BITS = 100_000
SECONDS = 10.0

_WIDTH = re.compile(r"\d+")
# Filters whose numbers say how much they make.
_BY_NUMBER = ("center", "indent", "batch", "slice", "tojson", "json", "format", "wordwrap")


class LimitError(TemplateRuntimeError):
    pass


class Budget:
    """What a rendering may use up: `with Budget(): …`."""

    def __init__(self) -> None:
        self.steps = 0
        self.size = 0
        self.end = time.monotonic() + SECONDS

    def step(self) -> None:
        """Count a turn of a loop or a call."""
        self.steps += 1
        if self.steps > STEPS:
            raise LimitError(f"stopped after {STEPS:,} turns of loops and calls")
        if time.monotonic() > self.end:
            raise LimitError(f"stopped after {SECONDS:g} seconds")

    def take(self, size: int) -> None:
        """Count characters or items that are about to be made."""
        self.size += max(size, 0)
        if self.size > SIZE:
            raise LimitError(f"it would make more than {SIZE:,} characters or items")

    def __enter__(self) -> None:
        self._token = _budget.set(self)

    def __exit__(self, *_: object) -> None:
        _budget.reset(self._token)


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def _current() -> Budget:
    # Jinja folds constants while it compiles, outside of a rendering; what fails there it leaves for the rendering.
    return _budget.get() or Budget()


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits; render within a `Budget`."""

    intercepted_binops = frozenset({"**", "*", "+", "%"})

    def limit(self) -> None:
        """Put the limits around filters and globals; call it when all of them are there."""
        for name in _BY_NUMBER:
            self.filters[name] = _by_number(self.filters[name])
        self.filters["join"] = _checked(self.filters["join"], _check_join)
        self.filters["replace"] = _checked(self.filters["replace"], _check_replace)
        self.filters["_counted"] = _counted
        self.filters["_joined"] = _joined
        del self.globals["lipsum"]
        self.finalize = _written

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Check what an operation would make, then do it."""
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063 - as jinja2 has it
        """Count a call and what it makes."""
        budget = _current()
        budget.step()
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_method(owner, getattr(method, "__name__", ""), args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str | list | tuple | range):
            budget.take(len(result))
        return result

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Limiter().visit(source), *args, **kwargs)


class _Limiter(NodeTransformer):
    """Lets loops count their turns and `~` the size of what it joins."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the name is jinja2's
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - the name is jinja2's
        self.generic_visit(node)
        items = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(items, "_joined", [], [], None, None, lineno=node.lineno)


def _counted(items: Any) -> Iterator[Any]:
    budget = _current()
    for item in items:
        budget.step()
        yield item


def _joined(items: Sequence[Any]) -> str:
    texts = [str(item) for item in items]
    _current().take(sum(map(len, texts)))
    return "".join(texts)


def _written(value: Any) -> Any:
    if isinstance(value, Sized):
        _current().take(len(value))
    return value


def _check_operation(operator: str, left: Any, right: Any) -> None:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers:
        _check_bits(left.bit_length() * abs(right))
    elif operator == "*" and numbers:
        _check_bits(left.bit_length() + right.bit_length())
    elif operator == "*" and isinstance(left, int | Sized) and isinstance(right, int | Sized):
        _current().take(_amount(left) * _amount(right))
    elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        _current().take(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        given = tuple(right.values()) if isinstance(right, Mapping) else right if isinstance(right, tuple) else (right,)
        _check_widths(left, given)


def _amount(value: int | Sized) -> int:
    return max(value, 0) if isinstance(value, int) else len(value)


def _check_bits(bits: int) -> None:
    if bits > BITS:
        raise LimitError(f"the number would have more than {BITS:,} bits")


def _check_widths(form: str, given: Sequence[Any]) -> None:
    """A format's own numbers, and those that it is given where it takes widths from them."""
    numbers = [int(digits) if len(digits) < 12 else SIZE + 1 for digits in _WIDTH.findall(form)]
    if "*" in form or "{:{" in form:
        numbers += [value for value in given if isinstance(value, int)]
    # What is formatted counts when it is written; a place may be filled once for each that the format has.
    _current().take(len(form) + sum(numbers) + sum(len(value) for value in given if isinstance(value, str)))


def _check_method(owner: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if name in ("format", "format_map"):
        _check_widths(owner, [*args, *kwargs.values()])
    elif name in ("ljust", "rjust", "center", "zfill"):
        _current().take(_numbers(args, kwargs))
    elif name == "expandtabs":
        _current().take(owner.count("\t") * (_numbers(args, kwargs) or 8))
    elif name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        _current().take(owner.count(args[0]) * len(args[1]))
    elif name == "join" and args and isinstance(args[0], list | tuple):
        _current().take(_length(owner, args[0]))


def _numbers(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    return sum(value for value in (*args, *kwargs.values()) if isinstance(value, int) and value > 0)


def _length(separator: str, items: Sequence[Any]) -> int:
    return sum(len(item) if isinstance(item, str) else 1 for item in items) + len(separator) * len(items)


def _checked(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    # `wraps` keeps jinja2's mark that says what stands in front of the arguments.
    before = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        check(args[before:], kwargs)
        return function(*args, **kwargs)

    return wrapper


def _by_number(function: Callable[..., Any]) -> Callable[..., Any]:
    def check(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        value = args[0] if args else ""
        if isinstance(value, str) and "%" in value:
            _check_widths(value, [*args[1:], *kwargs.values()])
        lines = value.count("\n") + 1 if isinstance(value, str) else 1
        _current().take(lines * _numbers(args[1:] if args and not isinstance(args[0], int) else args, kwargs))

    return _checked(function, check)


def _check_join(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    separator = args[1] if len(args) > 1 else kwargs.get("d", "")
    if args and isinstance(args[0], list | tuple) and isinstance(separator, str):
        _current().take(_length(separator, args[0]))


def _check_replace(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> None:
    if len(args) > 2 and all(isinstance(value, str) for value in args[:3]):
        _current().take(args[0].count(args[1]) * len(args[2]))
