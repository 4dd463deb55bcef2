"""YAML that people write: read safely, and with the line of every key for the error messages.

Used for `registry.yaml`, `models.yaml` and workflows. Refused are tags that construct objects, duplicate keys, anchors
that refer to themselves or expand to more than a person would write, and deep nesting.
"""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from tea_models.disk.regular import open_regular
from tea_models.errors import ConfigError, MissingFileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

# libyaml's parser is ten times as fast; PyYAML may be built without it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge")
_CORE = {f"tag:yaml.org,2002:{name}" for name in _PLAIN}
_MAX_BYTES = 4 * 1024 * 1024
_MAX_DEPTH = 64
_MAX_NODES = 200_000

Path_ = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound="BaseModel")


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed YAML file.

    Attributes:
        file: Name for messages.
        data: Plain Python data.
        lines: One-based line of each key and item, by path.
    """

    file: str
    data: Any
    lines: Mapping[Path_, int]

    def line(self, path: Sequence[str | int]) -> int | None:
        """The line of the value at `path`, or of its nearest parent that has one."""
        for length in range(len(path), -1, -1):
            if tuple(path[:length]) in self.lines:
                return self.lines[tuple(path[:length])]
        return None

    def error(self, message: str, path: Sequence[str | int] = (), *, hint: str = "") -> ConfigError:
        """A `ConfigError` that points at the value at `path`."""
        return ConfigError(message, file=self.file, line=self.line(path), key=dotted(path), hint=hint)


def read_yaml(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: The file can't be read as UTF-8 YAML, or is refused.
    """
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}", file=str(path)) from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"larger than {_MAX_BYTES:,} bytes", file=str(path))
    try:
        return load_yaml(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"byte {error.start:,} is not UTF-8", file=str(path), line=line) from None


def plain_yaml(text: str) -> Any:
    """The data of a YAML text of our own: nothing is refused, and no lines are remembered."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader, the one in C


def load_yaml(text: str, file: str) -> Document:
    """Parse YAML text.

    Args:
        text: The text.
        file: Name for messages.

    Raises:
        ConfigError: The text is not YAML, or uses what is refused.
    """
    try:
        _check_events(text, file)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return Document(file, None, {(): 1})
            lines: dict[Path_, int] = {(): root.start_mark.line + 1}
            _check_expansion(root, file)
            _collect(root, (), lines, file)
            return Document(file, loader.construct_document(root), lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"not valid YAML: {problem}", file=file, line=mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", file=file) from None
    except ValueError as error:  # a timestamp such as 2026-99-99, an int with too many digits
        raise ConfigError(f"a value can't be read: {error}", file=file) from None


def _check_events(text: str, file: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ConfigError(f"nested deeper than {_MAX_DEPTH} levels", file=file, line=_line(event))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!" and tag not in _CORE:
            raise ConfigError(f"tag {tag!r} is not allowed: only plain values", file=file, line=_line(event))


def _line(event: yaml.Event) -> int | None:
    return event.start_mark.line + 1 if event.start_mark else None


def _check_expansion(root: yaml.Node, file: str) -> None:
    """Count the nodes after expanding aliases; nesting is bounded already, cycles are not."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in open_nodes:
            raise ConfigError("an anchor refers to itself", file=file, line=node.start_mark.line + 1)
        if key not in sizes:
            open_nodes.add(key)
            children = (
                [child for pair in node.value for child in pair]
                if isinstance(node, yaml.MappingNode)
                else node.value
                if isinstance(node, yaml.SequenceNode)
                else []
            )
            sizes[key] = 1 + sum(map(size, children))
            open_nodes.discard(key)
            if sizes[key] > _MAX_NODES:
                line = node.start_mark.line + 1
                raise ConfigError(f"expands to more than {_MAX_NODES:,} values", file=file, line=line)
        return sizes[key]

    size(root)


def _collect(node: yaml.Node, path: Path_, lines: dict[Path_, int], file: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError("a key must be a plain text", file=file, line=line, key=dotted(path))
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = str(key.value)
            if name in seen:
                raise ConfigError(
                    f"duplicate key, first on line {seen[name]}", file=file, line=line, key=dotted((*path, name))
                )
            seen[name] = line
            lines[(*path, name)] = line
            _collect(value, (*path, name), lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _collect(value, (*path, index), lines, file)


def dotted(path: Sequence[str | int]) -> str:
    """A path as people write it: `models.phi4-mini.variants.Q4_K_M.files[0].sha256`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that `name` was probably meant to be, as the end of a sentence, or all of them if they are few."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    if match:
        return f"did you mean {match[0]!r}?"
    return f"known here: {', '.join(sorted(known))}" if len(known) <= 24 else ""


def validate(model: type[ModelT], document: Document) -> ModelT:
    """Validate a document against a pydantic model.

    Args:
        model: The model.
        document: The document.

    Raises:
        ConfigError: The first error, with file, line, key, what was expected and the nearest known key.
    """
    from pydantic import ValidationError

    newer = newer_schema(document.data, _schema_of(model))
    if newer:
        raise document.error(newer, ("schema",), hint="pip install --upgrade tea-models")
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise _explain(model, document, error) from None


def newer_schema(data: Any, schema: str) -> str:
    """What to say where a document is of a later version of `schema` (`tea.models-lock/1`); "" where it is not."""
    name, _, version = schema.partition("/")
    found, _, other = str(data.get("schema") if isinstance(data, dict) else "").partition("/")
    if not name or found != name or not other.isdecimal() or int(other) <= int(version):
        return ""
    return f"written by a newer tea-models: its schema is {found}/{other}, this one reads {schema}"


def _schema_of(model: type[BaseModel]) -> str:
    field = model.model_fields.get("schema_")
    return str(typing.get_args(field.annotation)[0]) if field is not None else ""


def _explain(model: type[BaseModel], document: Document, error: ValidationError) -> ConfigError:
    problems = error.errors(include_url=False, include_context=True)
    # In a union pydantic reports one error a branch; the deepest is the one that the person meant.
    problem = max(problems, key=lambda item: (item["type"] == "extra_forbidden", len(item["loc"])))
    path = tuple(part for part in problem["loc"] if _exists(document.data, problem["loc"], part))
    if problem["type"] == "extra_forbidden":
        known = _fields(model, problem["loc"][:-1])
        return document.error("unknown key", path, hint=nearest(str(problem["loc"][-1]), known))
    if problem["type"] == "missing":
        missing = problem["loc"][-1]
        return document.error(f"required key {str(missing)!r} is missing", path)
    given = problem.get("input")
    # What is no mapping at all may be any file of this machine: its text is not for a log.
    shown = "" if isinstance(given, dict | list) or not problem["loc"] else f", got {_shown(given)}"
    return document.error(_expected(problem) + shown, path)


# By pydantic's type of error; its messages speak of Python, and are others in other versions.
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "greater_than": "a number greater than {gt}",
    "int_type": "a whole number",
    "less_than": "a number less than {lt}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "a mapping",
    "string_type": "text",
    "too_short": "at least {min_length} in it",
}


def _expected(problem: ErrorDetails) -> str:
    context = problem.get("ctx", {})
    if problem["type"] == "value_error":
        return str(context["error"])
    known = _EXPECTED.get(problem["type"])
    return f"expected {known.format(**context)}" if known else problem["msg"]


def _shown(value: Any) -> str:
    text = repr(value)
    kind = {bool: " (true/false)", int: " (an unquoted number)", float: " (an unquoted number)"}.get(type(value), "")
    return (text if len(text) <= 80 else text[:77] + "…") + kind


def _exists(data: Any, loc: Sequence[str | int], part: str | int) -> bool:
    """Whether `part` of an error's location is a key of the document (and not the name of a union's branch)."""
    for step in loc:
        if step is part:
            break
        if _has(data, step):
            data = data[step]
    return _has(data, part)


def _has(data: Any, step: str | int) -> bool:
    if isinstance(data, dict):
        return step in data
    return isinstance(data, list) and isinstance(step, int) and step < len(data)


def _fields(model: Any, path: Sequence[str | int]) -> list[str]:
    """The keys that `model` knows at `path`."""
    from pydantic import BaseModel

    current = [model]
    for part in path:
        current = [found for candidate in current for found in _step(candidate, part)]
    names: list[str] = []
    for candidate in current:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            names += [field.alias or name for name, field in candidate.model_fields.items()]
    return names


def _step(annotation: Any, part: str | int) -> list[Any]:
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if part in (name, field.alias):
                return _alternatives(field.annotation)
        return _alternatives(annotation) if annotation.__name__ == part else []
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return _alternatives(arguments[1])
    if origin in (list, tuple):
        return _alternatives(arguments[0])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [found for one in typing.get_args(annotation) for found in _alternatives(one)]
    return [annotation]
