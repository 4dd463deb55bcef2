"""The process in which templates run. Started by `sandbox.py` as a script, never imported by the rest.

A chat template comes from a stranger. Three walls stand around it: Jinja's immutable sandbox, the limits of this
process (address space, time, no new file, no file growth, no fork, an empty environment), and the parent, which kills
the process when it is late. What the template sees is what `transformers` gives it
(`transformers.utils.chat_template_utils`): the same environment options, extensions, filters and globals, so that the
text is the same. The templates of workflows (`expressions.py`) run here too, because of the limits.

Frames on stdin and stdout: four bytes of length (big endian), then JSON as UTF-8 with lone surrogates passed through.
A request that begins with `MARSHAL` is in `marshal`'s format, which keeps tuples, sets and keys that are no texts.
"""

from __future__ import annotations

import codecs
import gc
import json
import marshal
import os
import re
import resource
import signal
import sys
import textwrap  # noqa: F401 - jinja2 imports it inside a filter, when no file may be opened any more
import types
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def _shallow_package(name: str) -> None:
    # `jinja2/__init__.py` imports every loader, the bytecode cache and with it tempfile, pickle and hashlib: 15 of
    # 80 ms. A package object with the right path lets the modules that render be imported without it.
    for folder in sys.path:
        path = f"{folder}/{name.replace('.', '/')}"
        if os.path.isfile(f"{path}/__init__.py"):  # noqa: PTH113 - importing pathlib costs as much as it saves
            package = types.ModuleType(name)
            package.__path__ = [path]
            sys.modules[name] = package
            return


if __name__ == "__main__":
    for _package in ("jinja2", "tea_models", "tea_models.chat"):
        _shallow_package(_package)

from jinja2 import (  # noqa: E402
    debug,  # noqa: F401 - jinja2 imports it at the first error, when no file may be opened any more
    nodes,
)
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError  # noqa: E402
from jinja2.ext import Extension, LoopControlExtension  # noqa: E402
from jinja2.utils import Namespace  # noqa: E402

from tea_models.chat.expressions import Expressions  # noqa: E402
from tea_models.chat.provenance import ROLES, ProvenanceEnvironment, joined, literal, origin_of, runs  # noqa: E402

MARSHAL = b"M"
_CACHED_TEMPLATES = 16
_MESSAGE_LIMIT = 2000
_DUNDER = re.compile(r"__[a-z]+__")
_FILTER_METHODS = frozenset(
    {"startswith", "endswith", "find", "rfind", "index", "count", "split", "rsplit", "partition"}
)


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; rendering passes it through.

    A call block, as in `transformers`, because it has a scope of its own: what is set inside ends inside.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_pass_through"), [], [], body).set_lineno(line)

    def _pass_through(self, caller: Callable[[], str]) -> str:
        return caller()


class _DictFactory:
    # The type `dict` itself would hand out its methods and, through them, more.
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _GuardedNamespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=…)` works, as in jinja2
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace can't have the attribute {name!r}: names may not start with an underscore")


def _raise_exception(message: Any) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Clock:
    """What `strftime_now` reads: local time as the parent states it, or the format itself in braces (for probing)."""

    def __init__(self) -> None:
        self.now: list[int] | str = "format"

    def strftime_now(self, format: str) -> str:  # noqa: A002 - templates may call it by keyword
        if isinstance(self.now, str):
            return f"{{now:{format}}}"
        year, month, day, hour, minute, second, microsecond = self.now
        return datetime(year, month, day, hour, minute, second, microsecond).strftime(format)  # noqa: DTZ001 - local time


class _Environment(ProvenanceEnvironment):
    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        # Jinja's own answer is an undefined value, which prints as nothing: a walk that was stopped half-way would show
        # up as an empty prompt. No template that means well gets here.
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe.")


class Renderer:
    """Compiles templates and renders jobs."""

    def __init__(self) -> None:
        self.clock = _Clock()
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, LoopControlExtension]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = self.clock.strftime_now
        environment.globals["dict"] = _DictFactory()
        environment.globals["namespace"] = _GuardedNamespace
        self.environment = environment
        self.templates: dict[str, Any] = {}

    def template(self, source: str, tree: nodes.Template | None = None) -> Any:
        if source not in self.templates:
            compiled = self.environment.from_string(source if tree is None else tree)
            if len(self.templates) >= _CACHED_TEMPLATES:
                self.templates.pop(next(iter(self.templates)))
            self.templates[source] = compiled
        return self.templates[source]

    def render(self, source: str, job: dict[str, Any], limit: int) -> dict[str, Any]:
        """One job → `{"text", "origins"}` or `{"error", "kind", "line"}`."""
        pieces = []
        try:
            template = self.template(source)
            self.clock.now = job["now"]
            for piece in template.root_render_func(template.new_context(_with_origins(job["variables"]))):
                pieces.append(piece)
                limit -= len(piece)
                if limit < 0:
                    return {"error": "", "kind": "output", "line": None}
            text = joined(pieces)
            return {"text": text, "origins": runs(origin_of(text))}
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a stranger's template raises is an answer
            return describe(error)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Render every job of a request; with `analyse`, say what the template's source reads and compares."""
        source = request["template"]
        results: list[dict[str, Any]] = []
        reply: dict[str, Any] = {"results": results}
        if request.get("analyse"):
            try:
                tree = self.environment.parse(source)
                reply["analysis"] = analyse(tree)
                self.template(source, tree)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - the same
                reply["analysis"] = describe(error)
                return reply
        for job in request["jobs"]:
            results.append(self.render(source, job, request["limit"]))  # noqa: PERF401 - keeps what was done on MemoryError
        return reply


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
    line = getattr(error, "lineno", None) if isinstance(error, TemplateSyntaxError) else _line_of(error)
    if isinstance(error, TemplateSyntaxError):
        kind = "syntax"
    elif isinstance(error, SecurityError):
        kind = "security"
    elif isinstance(error, UndefinedError):
        kind = "undefined"
    elif type(error) is TemplateError:
        kind = "raised"
    elif isinstance(error, RecursionError):
        kind = "recursion"
    elif isinstance(error, SyntaxError):
        kind = "syntax"
    else:
        kind = type(error).__name__
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - the message may be an object of the template's making
        message = ""
    return {"error": message[:_MESSAGE_LIMIT], "kind": kind, "line": line}


def _line_of(error: BaseException) -> int | None:
    found = None
    trace = error.__traceback__
    while trace is not None:
        template = trace.tb_frame.f_globals.get("__jinja_template__")
        if template is not None:
            found = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return found


def analyse(tree: nodes.Template) -> dict[str, Any]:
    """What the source says without running it.

    Returns:
        `variables`: names it reads, those that it never sets first; `literals`: strings that conditions compare with
        something; `calls`: names of globals and filters that make the output differ from run to run; `private`: names
        with underscores in front that it reaches for.
    """
    literals: dict[str, None] = {}
    for condition in tree.find_all((nodes.If, nodes.CondExpr, nodes.For)):
        test = getattr(condition, "test", None)
        if test is not None:
            _collect(test, literals)
    for compare in tree.find_all(nodes.Compare):
        _collect(compare, literals)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _FILTER_METHODS:
            _collect(call, literals)
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.node, nodes.Const | nodes.List | nodes.Tuple | nodes.Concat | nodes.Add):
            _collect(assign.node, literals)
    loaded = {name.name: None for name in tree.find_all(nodes.Name) if name.ctx == "load"}
    stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    filters = {item.name for item in tree.find_all(nodes.Filter)}
    attributes = {item.attr for item in tree.find_all(nodes.Getattr)}
    texts = {item.value for item in tree.find_all(nodes.Const) if isinstance(item.value, str)}
    private = {name for name in attributes if name.startswith("_")} | {text for text in texts if _DUNDER.search(text)}
    return {
        "private": sorted(private)[:8],
        "variables": sorted(loaded, key=lambda name: (name in stored, name)),
        "literals": list(literals)[:400],
        "calls": sorted((loaded.keys() & {"strftime_now", "lipsum"}) | (filters & {"random"})),
    }


def _collect(node: nodes.Node, into: dict[str, None]) -> None:
    for const in (node, *node.find_all((nodes.Const, nodes.Concat, nodes.Add))):
        if isinstance(const, nodes.Expr):
            try:
                value = const.as_const()
            except Exception:  # noqa: BLE001, S112 - not a constant
                continue
            if isinstance(value, str) and 0 < len(value) <= 200:
                into[value] = None


def _confine(memory: int) -> None:
    def limit(kind: int, value: int) -> None:
        try:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):  # a platform without this limit: the parent's clock still holds
            pass

    os.closerange(3, 4096)  # what a library of the parent may have left inheritable
    codecs.lookup("unicode_escape")  # jinja2's lexer needs it
    os.chdir("/")
    limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    if hasattr(resource, "RLIMIT_NPROC"):
        limit(resource.RLIMIT_NPROC, 0)
    limit(resource.RLIMIT_NOFILE, 3)


def _read(count: int) -> bytes:
    pieces = []
    while count:
        piece = os.read(0, min(count, 1 << 20))
        if not piece:
            os._exit(0)  # the parent went away
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _write(reply: dict[str, Any]) -> None:
    body = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
    view = memoryview(len(body).to_bytes(4, "big") + body)
    while view:
        view = view[os.write(1, view) :]


def main(memory: int) -> None:
    """Answer requests until stdin closes."""
    renderer, expressions = Renderer(), Expressions()
    _confine(memory)
    gc.enable()
    _write({"ready": True})
    while True:
        length = int.from_bytes(_read(4), "big")
        try:
            _serve(renderer, expressions, length)
        except MemoryError:
            renderer.templates.clear()
            _write({"results": [{"error": "", "kind": "memory", "line": None}]})
            os._exit(0)  # whatever is left of the heap, a new process starts clean
        signal.setitimer(signal.ITIMER_REAL, 0)


def _serve(renderer: Renderer, expressions: Expressions, length: int) -> None:
    body = _read(length)
    try:
        if body.startswith(MARSHAL):
            request = marshal.loads(memoryview(body)[1:])  # noqa: S302 - the parent's own
        else:
            request = json.loads(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        _write({"results": [describe(error)]})
        return
    del body
    # If the parent was killed, nobody stops a template that loops for ever but this.
    signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 2)
    _write(_evaluated(expressions, request) if "names" in request else renderer.answer(request))


def _evaluated(expressions: Expressions, request: dict[str, Any]) -> dict[str, Any]:
    try:
        value = expressions.value(request["source"], request["names"], expression=request["expression"])
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an expression raises is an answer
        return {"results": [describe(error)]}
    if isinstance(value, str) and len(value) > request["limit"]:
        return {"results": [{"error": "", "kind": "output", "line": None}]}
    return {"results": [{"value": value}]}


if __name__ == "__main__":
    main(int(sys.argv[1]))
