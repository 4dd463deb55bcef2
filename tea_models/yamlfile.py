"""YAML that people write: read safely, and with the line of every key for the error messages.

Used for `registry.yaml`, `models.yaml` and workflows. Refused are tags that construct objects, duplicate keys, anchors
that refer to themselves or expand to more than a person would write, and deep nesting.
"""

from __future__ import annotations

import difflib
import reprlib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from tea_models.disk.regular import open_regular
from tea_models.errors import ConfigError, MissingFileError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

# libyaml's parser is ten times as fast; PyYAML may be built without it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge")
_CORE = {f"tag:yaml.org,2002:{name}" for name in _PLAIN}
_MERGE = "tag:yaml.org,2002:merge"
_MAX_BYTES = 4 * 1024 * 1024
_MAX_DEPTH = 64
_MAX_NODES = 200_000

Path_ = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound="BaseModel")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed YAML file: its name for messages, plain data, and the one-based line of each key and item, by path."""

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

    def wrong(self, problem: str, path: Sequence[str | int], value: Any) -> ConfigError:
        """The error for a value that is not what was expected."""
        # What is no mapping at all may be any file of this machine: its text is not for a log.
        shown = "" if isinstance(value, dict | list) or not path else f", got {reprlib.repr(value)}"
        return self.error(problem + shown, path)

    def parsed(self, path: Path_, parse: Callable[[Any], T], value: Any) -> T:
        """What `parse` makes of a value; a `UsageError` of it points at the value."""
        try:
            return parse(value)
        except UsageError as error:
            raise self.error(error.message, path, hint=error.hint) from None

    def refuse_newer(self, schema: str) -> None:
        """Refuse a document of a later version of `schema` (`tea.models-lock/1`)."""
        name, _, version = schema.partition("/")
        found, _, other = str(self.data.get("schema") if isinstance(self.data, dict) else "").partition("/")
        if name and found == name and other.isdecimal() and int(other) > int(version):
            problem = f"written by a newer tea-models: its schema is {found}/{other}, this one reads {schema}"
            raise self.error(problem, ("schema",), hint="pip install --upgrade tea-models")

    def text(self, path: Path_, value: Any) -> str:
        """A value that has to be a text."""
        if not isinstance(value, str):
            raise self.wrong("expected text", path, value)
        return value

    def list_of(self, path: Path_, value: Any, *, least: int = 0) -> list[Any]:
        """A value that has to be a list with at least so many items."""
        if not isinstance(value, list):
            raise self.wrong("expected a list", path, value)
        if len(value) < least:
            raise self.error(f"expected at least {least} in it", path)
        return value

    def mapping(self, path: Path_, value: Any) -> dict[str, Any]:
        """A value that has to be a mapping."""
        if not isinstance(value, dict):
            raise self.wrong("expected a mapping", path, value)
        return value

    def keys(
        self, path: Path_, value: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """A value that has to be a mapping with these keys and no others."""
        data = self.mapping(path, value)
        for key in data:
            if key not in required + optional:
                raise self.error("unknown key", (*path, key), hint=nearest(str(key), required + optional))
        for key in required:
            if key not in data:
                raise self.error(f"required key {key!r} is missing", path)
        return data


def read_yaml(path: Path) -> Document:
    """Read a YAML file; a ConfigError where it can't be read as UTF-8 YAML, or is refused."""
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
    """Parse YAML text; `file` is its name in messages. A ConfigError where it is not YAML, or uses what is refused."""
    try:
        _check_events(text, file)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return Document(file, None, {(): 1})
            lines: dict[Path_, int] = {(): root.start_mark.line + 1}
            _collect(root, (), lines, file)
            return Document(file, loader.construct_document(root), lines)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(filter(None, (getattr(error, name, None) for name in ("context", "problem"))))
        line = mark.line + 1 if mark else None
        raise ConfigError(f"not valid YAML: {problem or error}", file=file, line=line) from None
    except ValueError as error:  # a timestamp such as 2026-99-99, an int with too many digits
        raise ConfigError(f"a value can't be read: {error}", file=file) from None


def _check_events(text: str, file: str) -> None:
    """Nesting and tags are looked at before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1 if event.start_mark else None
        if depth > _MAX_DEPTH:
            raise ConfigError(f"nested deeper than {_MAX_DEPTH} levels", file=file, line=line)
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!" and tag not in _CORE:
            raise ConfigError(f"tag {tag!r} is not allowed: only plain values", file=file, line=line)


def _collect(node: yaml.Node, path: Path_, lines: dict[Path_, int], file: str) -> None:
    """Note the lines, with aliases expanded; a person writes neither as many values nor as deep."""
    line = node.start_mark.line + 1
    if len(lines) > _MAX_NODES:
        raise ConfigError(f"expands to more than {_MAX_NODES:,} values", file=file, line=line)
    if len(path) > 2 * _MAX_DEPTH:
        raise ConfigError("an anchor refers to itself", file=file, line=line)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError("a key must be a plain text", file=file, line=line, key=dotted(path))
            inner = (*path, str(key.value))
            if key.value in seen and key.tag != _MERGE:
                first = f"duplicate key, first on line {seen[key.value]}"
                raise ConfigError(first, file=file, line=line, key=dotted(inner))
            seen[key.value] = lines[inner] = line
            _collect(value, inner, lines, file)
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
    """Validate a document; the first error has file, line, key, what was expected and the nearest known key."""
    from pydantic import ValidationError

    schema = model.model_fields.get("schema_")
    if schema is not None:
        document.refuse_newer(str(typing.get_args(schema.annotation)[0]))
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise _explain(model, document, error) from None


def _explain(model: type[BaseModel], document: Document, error: ValidationError) -> ConfigError:
    problems = error.errors(include_url=False, include_context=True)
    # In a union pydantic reports one error a branch; the deepest is the one that the person meant.
    problem = max(problems, key=lambda item: (item["type"] == "extra_forbidden", len(item["loc"])))
    path: list[str | int] = []  # without the names of a union's branches
    value = document.data
    for part in problem["loc"]:
        if part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int):
            path.append(part)
            value = value[part]
    if problem["type"] == "extra_forbidden":
        return document.error("unknown key", path, hint=nearest(str(path[-1]), _known_keys(model, path[:-1])))
    if problem["type"] == "missing":
        return document.error(f"required key {str(problem['loc'][-1])!r} is missing", path)
    return document.wrong(_expected(problem), path, problem.get("input"))


def _known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that a model knows at a place, by its JSON schema."""
    schema = model.model_json_schema()

    def branches(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if "$ref" in node:
            return branches(schema["$defs"][node["$ref"].rpartition("/")[2]])
        return [found for one in node["anyOf"] for found in branches(one)] if "anyOf" in node else [node]

    nodes = branches(schema)
    for part in path:
        children = [
            node.get("properties", {}).get(part)
            or node.get("items" if isinstance(part, int) else "additionalProperties")
            for node in nodes
        ]
        nodes = [found for child in children if isinstance(child, dict) for found in branches(child)]
    return [key for node in nodes for key in node.get("properties", ())]


# By pydantic's type of error; its messages speak of Python, and are others in other versions.
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "greater_than": "a number greater than {gt}",
    "int_type": "a whole number",
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
