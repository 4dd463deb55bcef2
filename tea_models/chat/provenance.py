"""Text that knows which of its characters a chat template wrote, so that only those become control tokens.

Imported by the worker process only. Data (messages, tools, variables) stay plain `str`; the texts of the template's
source become `TemplateText`, and whatever Jinja does with one (adding, slicing, stripping, splitting, joining,
replacing) keeps the origin of each character. An operation that is not followed here gives text of unknown origin,
never text that counts as the template's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import compiler, nodes
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_environment
from markupsafe import Markup, soft_str

TEMPLATE, DATA, UNKNOWN = b"t", b"d", b"u"
#: Roles that templates put into control tokens (`'<|' + role + '|>'`); any other role is data.
ROLES = frozenset(
    {"system", "user", "assistant", "tool", "developer", "function", "ipython", "model", "environment", "observation"}
)
# Filters that build a new text from what they are given. The others hand on what they got, or call a text's own method.
_BUILDING_FILTERS = (
    "center", "e", "escape", "forceescape", "format", "indent", "pprint", "striptags", "title", "tojson",
    "truncate", "urlencode", "urlize", "wordwrap", "xmlattr",
)  # fmt: skip
_RUN = re.compile(rb"t+|d+|u+")


class TemplateText(str):
    """A text of which the template wrote a part; `origin` has a letter for each character, by default all unknown."""

    __slots__ = ("_origin",)
    _origin: bytes

    def __new__(cls, text: str, origin: bytes | None = None) -> TemplateText:  # noqa: PYI034 - never subclassed
        self = str.__new__(cls, text)
        self._origin = UNKNOWN * len(self) if origin is None else origin
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> str:
        if type(other) in (str, TemplateText):
            return joined((self, other))
        return NotImplemented if hasattr(other, "__radd__") else str.__add__(self, other)

    def __radd__(self, other: Any) -> str:
        return joined((other, self)) if type(other) in (str, TemplateText) else NotImplemented

    def __mul__(self, count: Any) -> str:
        return _text(str.__mul__(self, count), self._origin * count)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return _filled(self, "%s", values if isinstance(values, tuple) else (values,), str.__mod__(self, values))

    def __rmod__(self, form: Any) -> str:
        return TemplateText(str.__mod__(form, str.__str__(self))) if isinstance(form, str) else NotImplemented

    def __getitem__(self, key: Any) -> str:
        result = str.__getitem__(self, key)
        return _text(result, self._origin[key if isinstance(key, slice) else slice(key, key + 1 or None)])

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def lstrip(self, chars: str | None = None) -> str:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None) -> str:
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None) -> str:
        return self.lstrip(chars).rstrip(chars)

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        found, place = [], 0
        for part in str.split(self, sep, maxsplit):
            start = str.find(self, part, place) if sep is None else place
            found.append(self[start : start + len(part)])
            place = start + len(part) + len(sep or "")
        return found

    def replace(self, old: str, new: str, count: Any = -1) -> str:
        result = str.replace(self, old, new, count)  # raises for what is no text, as it does everywhere
        if not old:
            return TemplateText(result)
        return joined(_between(self.split(old, count), new))

    def join(self, items: Iterable[str]) -> str:
        items = list(items)
        str.join(self, items)  # raises for what is no text, as it does everywhere
        return joined(_between(items, self))


def _followed(name: str, *, in_place: bool) -> Callable[..., Any]:
    """A method of `str`, whose result is of unknown origin unless each character stays in its place."""
    method = getattr(str, name)

    def build(self: TemplateText, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        if not isinstance(result, str):
            return type(result)(map(TemplateText, result))
        # No character gets shorter in another case: where the lengths are equal, each stands where it stood.
        return _text(result, self._origin) if in_place and len(result) == len(self) else TemplateText(result)

    build.__name__ = name
    return build


# Errors of a template name the class, and to its author these are texts like any other.
TemplateText.__name__, TemplateText.__module__ = "str", "builtins"
_CASES = ("capitalize", "casefold", "lower", "swapcase", "title", "upper")
_OTHERS = (
    "center", "expandtabs", "format", "format_map", "ljust", "partition", "removeprefix", "removesuffix", "rjust",
    "rpartition", "rsplit", "splitlines", "translate", "zfill",
)  # fmt: skip
for _name in _CASES + _OTHERS:
    setattr(TemplateText, _name, _followed(_name, in_place=_name in _CASES))


def origin_of(text: str) -> bytes:
    """A letter for each character: who wrote it. A text class of somebody else's (Markup) is of unknown origin."""
    if isinstance(text, TemplateText):
        return text._origin  # noqa: SLF001 - the class of this module
    return (DATA if type(text) is str else UNKNOWN) * len(text)


def joined(texts: Iterable[str]) -> str:
    """Texts one after another."""
    texts = list(texts)
    whole = "".join(texts)
    if all(type(text) is str for text in texts):
        return whole
    return _text(whole, b"".join(map(origin_of, texts)))


def runs(origin: bytes) -> list[tuple[int, str]]:
    """Lengths and letters of the stretches of equal origin."""
    return [(run.end() - run.start(), run.group()[:1].decode()) for run in _RUN.finditer(origin)]


@functools.lru_cache(maxsize=4096)
def literal(text: str) -> TemplateText:
    """A text that stands in the template's source."""
    return TemplateText(text, TEMPLATE * len(text))


def written(value: Any) -> str:
    """A value as text; what was marked as safe HTML is of unknown origin."""
    return TemplateText(str(value)) if isinstance(value, Markup) else str(value)


def _text(text: str, origin: bytes) -> str:
    return TemplateText(text, origin) if origin.strip(DATA) else text


def _between(items: list[str], separator: str) -> Iterator[str]:
    for index, item in enumerate(items):
        if index:
            yield separator
        yield item


def _filled(form: TemplateText, place: str, values: tuple[Any, ...], result: str) -> str:
    """What `%` or `format` made, if all places are `%s` or `{}`; of unknown origin where there are others."""
    first, *parts = form.split(place)
    pieces = [first]
    for part, value in zip(parts, values, strict=False):
        pieces += [str(value), part]
    text = joined(pieces)
    return text if len(parts) <= len(values) and text == result else TemplateText(result)


class _CodeGenerator(compiler.CodeGenerator):
    """Writes the texts of a template's source as calls of `literal`."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return _source("".join(group))

    def visit_Const(self, node: nodes.Const, frame: compiler.Frame) -> None:  # noqa: N802 - the names are jinja2's
        value = node.as_const(frame.eval_ctx)
        if type(value) in (str, list, tuple, dict):
            self.write(_source(value))
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: compiler.Frame) -> None:  # noqa: ARG002, N802
        self.write(_source(node.data))

    def _output_child_pre(self, node: nodes.Expr, frame: compiler.Frame, finalize: Any) -> None:  # noqa: ARG002
        self.write("environment.written(")

    def visit_Concat(self, node: nodes.Concat, frame: compiler.Frame) -> None:  # noqa: N802
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier, frame: compiler.Frame) -> None:  # noqa: ARG002, N802
        self.fail("a prompt is no HTML, and nothing in it is escaped", node.lineno)


def _source(value: Any) -> str:
    """A constant as Python source."""
    if type(value) is str:
        return f"environment.literal({value!r})"
    if type(value) is dict:
        return "{" + ", ".join(f"{_source(key)}: {_source(item)}" for key, item in value.items()) + "}"
    if type(value) in (list, tuple):
        inner = "".join(f"{_source(item)}, " for item in value)
        return f"[{inner}]" if type(value) is list else f"({inner})"
    return repr(value)


class ProvenanceEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which texts of the template know that they are."""

    code_generator_class = _CodeGenerator
    concat = staticmethod(joined)
    literal = staticmethod(literal)
    written = staticmethod(written)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in _BUILDING_FILTERS:
            self.filters[name] = _building(FILTERS[name])
        self.filters["join"], self.filters["replace"] = _join, _replace

    @staticmethod
    def concatenated(values: Iterable[Any]) -> str:
        """What `~` makes."""
        return joined(map(written, values))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063 - as jinja2 has it
        """Call something; a method of plain text that may put in texts of the template keeps track of them."""
        owner = getattr(__obj, "__self__", None)
        if type(owner) is str and __obj.__name__ in ("join", "replace"):
            __obj = getattr(TemplateText(owner, DATA * len(owner)), __obj.__name__)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's guarded `format`, which keeps track where every place is `{}`."""
        guarded = super().wrap_str_format(value)
        if guarded is None or not isinstance(value.__self__, TemplateText):
            return guarded

        def formatted(*args: Any, **kwargs: Any) -> str:
            result = guarded(*args, **kwargs)
            return _filled(value.__self__, "{}", args, result) if value.__name__ == "format" else result

        return formatted


def _building(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if not isinstance(result, str) or isinstance(result, Markup):
            return result
        mixed = any(isinstance(value, TemplateText) for value in (*args, *kwargs.values()))
        return TemplateText(result) if mixed else result

    return build


@pass_environment
def _join(environment: ProvenanceEnvironment, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return joined(_between([written(item) for item in value], written(d)))


def _replace(s: str, old: str, new: str, count: int | None = None) -> str:
    text = written(s)
    text = TemplateText(text, origin_of(text))
    return text.replace(soft_str(old), soft_str(new), -1 if count is None else count)
