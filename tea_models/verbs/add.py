"""`add`: a pinned entry in the project's `registry.yaml`, which otherwise stays as it is, byte for byte."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tea_models.disk.atomic import write_document
from tea_models.disk.regular import open_regular
from tea_models.errors import ConfigError, IntegrityError, NotAvailableError, UsageError
from tea_models.files import Artifact, ModelFile, public
from tea_models.profile.header_facts import resolve_profile
from tea_models.refs import FileRef, HubRef, quantization_of
from tea_models.registry.entries import SCHEMA, read_entries
from tea_models.sources import hub, resolve
from tea_models.verbs.pull import measured
from tea_models.yamlfile import load_yaml

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.caller import Caller
    from tea_models.settings import Settings

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}\Z")
_KINDS = {"chat", "text", "embedding", "reranker", "projector", "adapter"}
_NEW_FILE = f"schema: {SCHEMA}\nmodels: {{}}\n"


@dataclass(frozen=True, slots=True)
class AddedEntry:
    """An entry that was written.

    Attributes:
        name: Its name.
        variant: The name of its one variant.
        file: The registry file.
        text: The entry as it stands there.
        artifact: What it pins.
    """

    name: str
    variant: str
    file: Path
    text: str
    artifact: Artifact


def add_entry(
    name: str,
    reference: str,
    *,
    file: Path,
    caller: Caller,
    replace_existing: bool = False,
    license_: str | None = None,
) -> AddedEntry:
    """Pin what a reference means now and write it into a registry file under a name.

    Commit, size and hash come from the Hub's headers or the registry; where nobody states a hash, the model is pulled.

    Args:
        name: The new name: lower-case letters, digits, `.`, `_`, `-`.
        reference: What it stands for.
        file: The registry file; made if it is absent.
        caller: Its settings name the store and the hosts; told about bytes as they arrive.
        replace_existing: Replace an entry of this name in the file.
        license_: The licence, if what the Hub and the file say is not wanted.

    Raises:
        UsageError: A name that can't be one, or is in the file already.
        ConfigError: The file is no registry.
        NotAvailableError: The reference can't be resolved from here.
    """
    if not _NAME.match(name):
        raise UsageError(f"{name!r} can't be a name: expected lower-case letters, digits, '.', '_' and '-'")
    before = _read(file)
    edit = _Edit(before, str(file))
    if edit.has(name) and not replace_existing:
        raise UsageError(f"{file} has a model {name!r} already", hint="--replace writes it anew")
    artifact = measured(resolve(reference, caller), caller)
    variant, document = _document(artifact, file, caller.settings, license_)
    text = yaml.safe_dump({name: document}, sort_keys=False, allow_unicode=True, width=1 << 20)
    after = edit.with_entry(name, text)
    _check(before, after, file, name)
    write_document(file, after)
    return AddedEntry(name, variant, file, text, artifact)


def _document(artifact: Artifact, file: Path, settings: Settings, license_: str | None) -> tuple[str, dict[str, Any]]:
    kind, quantization, header_license = _from_header(artifact, settings)
    variant = artifact.variant or quantization or quantization_of(artifact.files[0].filename) or "default"
    document: dict[str, Any] = {
        "kind": kind,
        "license": license_ or artifact.license or _hub_license(artifact, settings) or header_license or "unknown",
        "variants": {variant: {"files": [_file_document(item, file) for item in artifact.files]}},
    }
    return variant, document


def _from_header(artifact: Artifact, settings: Settings) -> tuple[str, str | None, str | None]:
    """Kind, quantisation and licence as the model's file says them; what can't be read stays unknown."""
    try:
        profile = resolve_profile(artifact.reference, settings=settings)
    except (NotAvailableError, IntegrityError):
        return "chat", None, None
    kind = profile.kind.value if profile.kind.value in _KINDS else "text"
    return kind, profile.quantization.value, profile.license.value


def _hub_license(artifact: Artifact, settings: Settings) -> str | None:
    reference = artifact.files[0].sources[0].parts[0]
    if not isinstance(reference, HubRef):
        return None
    try:
        return hub.listing(reference, settings)[2]
    except NotAvailableError:
        return None


def _file_document(item: ModelFile, file: Path) -> dict[str, Any]:
    sources: list[Any] = []
    for source in item.sources:
        parts = [_beside(part, file) if isinstance(part, FileRef) else public(part) for part in source.parts]
        sources.append(parts[0] if len(parts) == 1 else {"parts": parts})
    return {"filename": item.filename, "size": item.size, "sha256": item.sha256, "sources": sources}


def _beside(reference: FileRef, file: Path) -> str:
    """A file in the project is named relative to the registry, so that the project can be moved."""
    path, folder = reference.path.resolve(), file.parent.resolve()
    return f"./{path.relative_to(folder)}" if path.is_relative_to(folder) else f"file:{path}"


class _Edit:
    """Where in the text of a registry file an entry begins, ends, or can be put."""

    def __init__(self, text: str, file: str) -> None:
        document = load_yaml(text, file)
        read_entries(document, file)  # refuses a file that is no registry before anything is fetched
        self.text = text
        self.lines = text.splitlines(keepends=True)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        found = [pair for pair in root.value if pair[0].value == "models"] if root is not None else []
        self.key: Any = found[0][0] if found else None
        self.models: Any = found[0][1] if found else None
        if self.models is not None and self.models.flow_style and self.models.value:
            line = self.models.start_mark.line + 1
            raise ConfigError("expected one entry a line, not {…}", file=file, line=line, key="models")

    def has(self, name: str) -> bool:
        """Whether there is an entry of that name."""
        return self._entry(name) is not None

    def with_entry(self, name: str, text: str) -> str:
        """The file with the entry added, or put in the place of the one of that name."""
        lines = list(self.lines)
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        newline = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
        entry = self._entry(name)
        if entry is not None:
            start, end = entry[0].start_mark.line, _last_line(entry[1]) + 1
            lines[start:end] = _indented(text, entry[0].start_mark.column, newline)
        elif self.models is None or self.key is None:
            lines += ["models:" + newline, *_indented(text, 2, newline)]
        elif not self.models.value:
            at = self.key.start_mark.line
            lines[at : _last_line(self.models) + 1] = ["models:" + newline, *_indented(text, 2, newline)]
        else:
            at = _last_line(self.models) + 1
            while not lines[at - 1].strip():  # a block scalar ends after its blank lines
                at -= 1
            lines[at:at] = _indented(text, self.models.value[0][0].start_mark.column, newline)
        return "".join(lines)

    def _entry(self, name: str) -> tuple[Any, Any] | None:
        if self.models is None or not isinstance(self.models.value, list):
            return None
        return next(((key, value) for key, value in self.models.value if key.value == name), None)


def _last_line(node: Any) -> int:
    """The zero-based line on which the last thing of a node stands; its own end mark lies after blanks and comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return max(_last_line(last[0]), _last_line(last[1])) if isinstance(last, tuple) else _last_line(last)
    mark = node.end_mark
    return mark.line - 1 if mark.column == 0 and mark.line > node.start_mark.line else int(mark.line)


def _indented(text: str, columns: int, newline: str) -> list[str]:
    return [" " * columns + line + newline for line in text.splitlines()]


def _check(before: str, after: str, file: Path, name: str) -> None:
    """What was written must be a registry with everything that was there, and the new entry."""
    old, new = load_yaml(before, str(file)), load_yaml(after, str(file))
    read_entries(new, str(file))
    rest = {key: value for key, value in new.data["models"].items() if key != name}
    kept = {key: value for key, value in ((old.data or {}).get("models") or {}).items() if key != name}
    if rest != kept:
        raise ConfigError("the entry can't be put in without changing others", file=str(file), hint="add it by hand")


def _read(file: Path) -> str:
    try:
        with open_regular(file) as reader:
            text = reader.read().decode()
    except FileNotFoundError:
        return _NEW_FILE
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't be read: {getattr(error, 'strerror', None) or error}", file=str(file)) from None
    return text if text.strip() else _NEW_FILE
