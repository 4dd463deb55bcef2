"""`add`: a pinned entry in the project's `registry.yaml`, which otherwise stays as it is, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tea_models.caller import Caller
from tea_models.disk.atomic import write_document
from tea_models.disk.regular import open_regular
from tea_models.errors import ConfigError, IntegrityError, NotAvailableError, UsageError
from tea_models.files import Artifact, ModelFile, public
from tea_models.profile.header_facts import resolve_profile
from tea_models.refs import FileRef, Reference, quantization_of
from tea_models.registry.entries import NAME, SCHEMA, read_entries
from tea_models.settings import Settings
from tea_models.sources import resolve
from tea_models.verbs.pull import measured
from tea_models.yamlfile import load_yaml

_KINDS = {"chat", "text", "embedding", "reranker", "projector", "adapter"}
_NEW_FILE = f"schema: {SCHEMA}\nmodels: {{}}\n"


def add_entry(
    name: str,
    reference: str,
    *,
    file: Path,
    caller: Caller,
    replace_existing: bool = False,
    license_: str | None = None,
) -> tuple[str, str, tuple[ModelFile, ...]]:
    """Pin what a reference means now under a name of a registry file; a model whose hash nobody states is pulled.

    Gives the one variant of the entry, its text as it stands in the file, and what it pins.
    """
    if not NAME.match(name):
        raise UsageError(f"{name!r} can't be a name: expected lower-case letters, digits, '.', '_' and '-'")
    before = _read(file)
    old = load_yaml(before, str(file))
    read_entries(old, str(file))  # refuses a file that is no registry before anything is fetched
    _models_of(before, file)
    models = (old.data or {}).get("models") or {}
    if name in models and not replace_existing:
        raise UsageError(f"{file} has a model {name!r} already", hint="--replace writes it anew")
    artifact = measured(resolve(reference, caller), caller)
    variant, document = _document(artifact, file, caller.settings, license_)
    text = yaml.safe_dump({name: document}, sort_keys=False, allow_unicode=True, width=1 << 20)
    after = _with_entry(before, file, name, text)
    # What is written must be a registry with everything that was there, and the new entry.
    new = load_yaml(after, str(file))
    read_entries(new, str(file))
    if {key: value for key, value in new.data["models"].items() if key != name} != {
        key: value for key, value in models.items() if key != name
    }:
        raise ConfigError("the entry can't be put in without changing others", file=str(file), hint="add it by hand")
    write_document(file, after)
    return variant, text, artifact.files


def _document(artifact: Artifact, file: Path, settings: Settings, license_: str | None) -> tuple[str, dict[str, Any]]:
    kind, quantization, header_license = _from_header(artifact, settings)
    variant = artifact.variant or quantization or quantization_of(artifact.files[0].filename) or "default"

    def shown(reference: Reference) -> str:
        """A file in the project is named relative to the registry, so that the project can be moved."""
        if not isinstance(reference, FileRef):
            return public(reference)
        path, folder = reference.path.resolve(), file.parent.resolve()
        return f"./{path.relative_to(folder)}" if path.is_relative_to(folder) else f"file:{path}"

    files = [
        {
            "filename": item.filename,
            "size": item.size,
            "sha256": item.sha256,
            "sources": [source.document(shown) for source in item.sources],
        }
        for item in artifact.files
    ]
    stated = license_ or artifact.license or header_license or "unknown"
    return variant, {"kind": kind, "license": stated, "variants": {variant: {"files": files}}}


def _from_header(artifact: Artifact, settings: Settings) -> tuple[str, str | None, str | None]:
    """Kind, quantisation and licence as the model's file says them; what can't be read stays unknown."""
    try:
        profile = resolve_profile(artifact.reference, settings=settings)
    except (NotAvailableError, IntegrityError):
        return "chat", None, None
    kind = profile.kind.value if profile.kind.value in _KINDS else "text"
    return kind, profile.quantization.value, profile.license.value


def _models_of(text: str, file: Path) -> tuple[Any, Any] | None:
    """The node of the key `models` and that of its value."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found = next((pair for pair in root.value if pair[0].value == "models"), None) if root is not None else None
    if found is not None and found[1].flow_style and found[1].value:
        line = found[1].start_mark.line + 1
        raise ConfigError("expected one entry a line, not {…}", file=str(file), line=line, key="models")
    return found


def _with_entry(text: str, file: Path, name: str, entry: str) -> str:
    """The text of a registry with the entry added, or put in the place of the one of that name."""
    lines = text.splitlines(keepends=True)
    newline = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += newline

    def indented(columns: int) -> list[str]:
        return [" " * columns + line + newline for line in entry.splitlines()]

    models = _models_of(text, file)
    if models is None:
        lines += ["models:" + newline, *indented(2)]
    elif not models[1].value:
        lines[models[0].start_mark.line : _last_line(models[1]) + 1] = ["models:" + newline, *indented(2)]
    else:
        start = end = _last_line(models[1]) + 1
        column = models[1].value[0][0].start_mark.column
        for key, value in models[1].value:
            if key.value == name:
                start, end = key.start_mark.line, _last_line(value) + 1
        while start == end and not lines[start - 1].strip():  # a block scalar ends after its blank lines
            start = end = start - 1
        lines[start:end] = indented(column)
    return "".join(lines)


def _last_line(node: Any) -> int:
    """The zero-based line on which the last thing of a node stands; its own end mark lies after blanks and comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return max(_last_line(last[0]), _last_line(last[1])) if isinstance(last, tuple) else _last_line(last)
    mark = node.end_mark
    return mark.line - 1 if mark.column == 0 and mark.line > node.start_mark.line else int(mark.line)


def _read(file: Path) -> str:
    try:
        with open_regular(file) as reader:
            text = reader.read().decode()
    except FileNotFoundError:
        return _NEW_FILE
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't be read: {getattr(error, 'strerror', None) or error}", file=str(file)) from None
    return text if text.strip() else _NEW_FILE
