"""The process in which templates run. Started by `sandbox.py`, never imported by the rest.

Three walls stand around a template: Jinja's immutable sandbox, the limits of this process (address space, time, no
file, no fork, an empty environment), and the parent, which kills it when it is late. A chat template sees what
`transformers.utils.chat_template_utils` gives it: the same options, extensions, filters and globals.

Frames on stdin and stdout: four bytes of length (big endian), then a request in `marshal`'s format, which keeps tuples,
sets and keys that are no texts; replies are JSON as UTF-8 with lone surrogates passed through.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
import marshal
import os
import resource
import signal
import sys
import textwrap  # noqa: F401 - jinja2 imports it inside a filter, when no file may be opened any more
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import (
    debug,  # noqa: F401 - jinja2 imports it at the first error, when no file may be opened any more
    nodes,
)
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.utils import Namespace

from tea_models.chat.expressions import Expressions
from tea_models.chat.provenance import ROLES, ProvenanceEnvironment, joined, literal, origin_of, runs

_CACHED_TEMPLATES = 16
_MESSAGE_LIMIT = 2000
_FILTER_METHODS = frozenset(
    {"startswith", "endswith", "find", "rfind", "index", "count", "split", "rsplit", "partition"}
)
_KINDS = (
    (TemplateSyntaxError, "syntax"),
    (SecurityError, "security"),
    (UndefinedError, "undefined"),
    (RecursionError, "recursion"),
    (SyntaxError, "syntax"),
)


class _GenerationTag(Extension):
    """`{% generation %}` marks text for training; a call block, as in `transformers`, has a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_pass_through"), [], [], body).set_lineno(line)

    def _pass_through(self, caller: Callable[[], str]) -> str:
        return caller()


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict`, of which the type itself would hand out its methods and, through them, more."""
    return dict(*args, **kwargs)


class _GuardedNamespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"attributes of a namespace may not start with an underscore: {name!r}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    made = _GuardedNamespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def _raise_exception(message: Any) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Environment(ProvenanceEnvironment):
    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        # Jinja's own answer is an undefined value, which prints as nothing: a walk that was stopped half-way would show
        # up as an empty prompt. No template that means well gets here.
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe.")


class Renderer:
    """Compiles templates and renders jobs."""

    def __init__(self) -> None:
        self.now: list[int] | str = "format"
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, LoopControlExtension]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = self.strftime_now
        environment.globals["dict"] = _dict
        environment.globals["namespace"] = _namespace
        self.environment = environment
        self.template = functools.lru_cache(_CACHED_TEMPLATES)(environment.from_string)

    def strftime_now(self, format: str) -> str:  # noqa: A002 - templates may call it by keyword
        """Local time as the parent states it, or the format itself in braces (for probing)."""
        if isinstance(self.now, str):
            return f"{{now:{format}}}"
        year, month, day, hour, minute, second = self.now
        return datetime(year, month, day, hour, minute, second).strftime(format)  # noqa: DTZ001 - local time

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Render every job of a request; with `analyse`, say what the template's source reads and compares."""
        reply: dict[str, Any] = {"results": []}
        if request.get("analyse"):
            reply["analysis"] = _attempt(lambda: analyse(self.environment.parse(request["template"])))
            if "error" in reply["analysis"]:
                return reply
        reply["results"] = [
            _attempt(self.render, request["template"], job, request["limit"]) for job in request["jobs"]
        ]
        return reply

    def render(self, source: str, job: dict[str, Any], limit: int) -> dict[str, Any]:
        """The text of one job, and which stretches of it the template wrote."""
        pieces: list[str] = []
        template = self.template(source)
        self.now = job["now"]
        for piece in template.root_render_func(template.new_context(_with_origins(job["variables"]))):
            pieces.append(piece)
            limit -= len(piece)
            if limit < 0:
                return _failure("output")
        text = joined(pieces)
        return {"text": text, "origins": runs(origin_of(text))}


def _attempt(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What a function gives, or `{"error", "kind", "line"}`: whatever a stranger's template raises is an answer."""
    try:
        return function(*args)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - see above
        return describe(error)


def _failure(kind: str) -> dict[str, Any]:
    return {"error": "", "kind": kind, "line": None}


def _with_origins(variables: dict[str, Any]) -> dict[str, Any]:
    """Let the model's own token texts and known roles count as the template's; everything else is data."""
    for name in ("bos_token", "eos_token"):
        if type(variables.get(name)) is str:
            variables[name] = literal(variables[name])
    for message in variables["messages"]:
        role = message.get("role")
        if isinstance(role, str) and role in ROLES:
            message["role"] = literal(role)
    return variables


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as data: kind, message and line of the template."""
    line = error.lineno if isinstance(error, TemplateSyntaxError) else _line_of(error)
    known = (name for kind, name in _KINDS if isinstance(error, kind))
    kind = "raised" if type(error) is TemplateError else next(known, type(error).__name__)
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - the message may be an object of the template's making
        message = ""
    return {"error": message[:_MESSAGE_LIMIT], "kind": kind, "line": line}


def _line_of(error: BaseException) -> int | None:
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        template = frame.f_globals.get("__jinja_template__")
        if template is not None:
            found = template.get_corresponding_lineno(line)
    return found


def analyse(tree: nodes.Template) -> dict[str, Any]:
    """What the source says: `variables` it reads, its own last; `literals` that it compares; whether it is `random`."""
    compared: list[nodes.Node] = [
        *(node.test for node in tree.find_all(nodes.If)),
        *(node.test for node in tree.find_all(nodes.CondExpr)),
        *(node.test for node in tree.find_all(nodes.For) if node.test is not None),
        *tree.find_all(nodes.Compare),
        *(call for call in tree.find_all(nodes.Call) if getattr(call.node, "attr", "") in _FILTER_METHODS),
        *(assign.node for assign in tree.find_all(nodes.Assign)),
    ]
    literals = dict.fromkeys(text for node in compared for text in _constants(node) if 0 < len(text) <= 200)
    loaded = {name.name: None for name in tree.find_all(nodes.Name) if name.ctx == "load"}
    stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    filters = {item.name for item in tree.find_all(nodes.Filter)}
    return {
        "variables": sorted(loaded, key=lambda name: (name in stored, name)),
        "literals": list(literals)[:400],
        "random": "lipsum" in loaded or "random" in filters,
    }


def _constants(node: nodes.Node) -> Iterator[str]:
    for constant in (node, *node.find_all((nodes.Const, nodes.Concat, nodes.Add))):
        try:
            value = constant.as_const()  # type: ignore[attr-defined]
        except Exception:  # noqa: BLE001, S112 - not a constant
            continue
        if isinstance(value, str):
            yield value


def _confine(memory: int) -> None:
    codecs.lookup("unicode_escape")  # jinja2's lexer needs it
    os.chdir("/")
    limits = {"AS": memory, "CORE": 0, "FSIZE": 0, "NPROC": 0, "NOFILE": 3}
    for name, value in limits.items():
        # On a platform without one of the limits the parent's clock still holds.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (most, most))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the parent may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _read(count: int) -> bytes:
    data = sys.stdin.buffer.read(count)
    if len(data) < count:
        os._exit(0)  # the parent went away
    return data


def _write(reply: dict[str, Any]) -> None:
    body = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
    sys.stdout.buffer.write(len(body).to_bytes(4, "big") + body)
    sys.stdout.buffer.flush()


def main(memory: int) -> None:
    """Answer requests until stdin closes."""
    renderer, expressions = Renderer(), Expressions()
    _confine(memory)
    _write({"ready": True})
    while True:
        length = int.from_bytes(_read(4), "big")
        try:
            reply = _attempt(_answer, renderer, expressions, length)
            _write(reply if "results" in reply else {"results": [reply]})
        except MemoryError:
            _write({"results": [_failure("memory")]})
            os._exit(0)  # whatever is left of the heap, a new process starts clean
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(renderer: Renderer, expressions: Expressions, length: int) -> dict[str, Any]:
    request = marshal.loads(_read(length))  # noqa: S302 - the parent's own
    # If the parent was killed, nobody stops a template that loops for ever but this.
    signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 2)
    if "jobs" in request:
        return renderer.answer(request)
    value = expressions.value(request["source"], request["names"], expression=request["expression"])
    return _failure("output") if isinstance(value, str) and len(value) > request["limit"] else {"value": value}
