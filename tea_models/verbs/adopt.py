"""Adopting: GGUF files that another tool has on this machine are checked and linked in, not fetched again.

The other tool's files are only ever read: the store never writes in place, so a shared inode is safe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tea_models.caller import Caller
from tea_models.disk.hashing import sha256_file
from tea_models.errors import (
    ChecksumMismatchError,
    IntegrityError,
    MissingFileError,
    TeaModelsError,
    UnknownModelError,
    UsageError,
)
from tea_models.files import ModelFile, shard_names
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import read_header
from tea_models.gguf.quantization import file_type_name
from tea_models.profile.stored import write_profile
from tea_models.progress import Progress
from tea_models.refs import NameRef, parse_reference
from tea_models.registry.entries import Registry
from tea_models.settings import Settings
from tea_models.sources.local import shards
from tea_models.store import Record, Store, stamp_of
from tea_models.store.other_tools import Found, find_all, find_by_sha256, named_by
from tea_models.verbs.pull import PullResult


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file of another tool, with what its header says, or why it can't be used; `model` is the registry's name."""

    found: Found
    architecture: str | None = None
    quantization: str | None = None
    title: str | None = None
    problem: str | None = None
    model: str | None = None
    installed: bool = False

    def to_json(self) -> dict[str, Any]:
        found = {key: getattr(self.found, key) for key in ("name", "tool", "path", "size", "sha256")}
        return found | {item.name: getattr(self, item.name) for item in fields(self) if item.name != "found"}


def candidates(settings: Settings) -> list[Candidate]:
    """What other tools have; `settings.environ` says where they keep their files."""
    registry = Registry.load(settings)
    store = Store.of(settings)
    records = store.records()
    hashes = {record.sha256 for record in records}
    inodes = {_identity(store.root / record.file) for record in records} - {None}
    result = []
    for found in find_all(settings.environ):
        if not found.path.is_relative_to(store.root.resolve()):
            known = registry.by_sha256(found.sha256) if found.sha256 else None
            installed = found.sha256 in hashes or _identity(found.path) in inodes
            model = f"{known[0].name}:{known[1].name}" if known else None
            result.append(Candidate(found, **_described(found), model=model, installed=installed))
    return result


def adopt(names: Sequence[str], caller: Caller) -> list[PullResult]:
    """Verify files of other tools (by path, shown name, name or SHA-256) and link them in; errors come last."""
    registry = Registry.load(caller.settings)
    results: list[PullResult] = []
    broken: list[IntegrityError] = []
    for name in names:
        try:
            taken = _take(name, _chosen(name, caller.settings, registry), caller, registry)
        except IntegrityError as error:
            broken.append(error)
            continue
        write_profile(taken[0].path, caller)
        results += taken
    if broken:
        for text in [f"{result.name}: {result.status}" for result in results] + [e.message for e in broken[1:]]:
            caller.note(text)
        raise broken[0]
    return results


def _take(name: str, chosen: Sequence[Found], caller: Caller, registry: Registry) -> list[PullResult]:
    """Check every file of a model, and only then give each a name in one folder."""
    store = Store.of(caller.settings)
    stamps = [stamp_of(found.path.stat()) for found in chosen]  # before they are read
    records = [_checked(found, caller.progress, registry) for found in chosen]
    files = [ModelFile(record.file, record.size, record.sha256, ()) for record in records]
    present = store.paths_of(files)
    if present is not None and all(path.name == file.filename for path, file in zip(present, files, strict=True)):
        return [PullResult.of(name, record, path, "present") for path, record in zip(present, records, strict=True)]
    for file in files:
        store.set_aside_broken(file)
    tool = chosen[0].tool.lower().replace(" ", "-")
    folder = store.folder_for(files, [tool, f"{tool}/{str(files[0].sha256)[:12]}"])
    results = []
    for found, record, stamp in zip(chosen, records, stamps, strict=True):
        target = folder / record.file
        known = store.record_of(target)
        if known is not None and known.sha256 == record.sha256 and store.intact(known):
            results.append(PullResult.of(name, known, target, "present"))
        else:
            store.link_in(found.path, target, record, stamp)
            results.append(PullResult.of(name, record, target, "adopted"))
    return results


def _checked(found: Found, progress: Progress, registry: Registry) -> Record:
    """What is to be recorded of a file that has the bytes that it should."""
    with FileSource(found.path) as source:
        read_header(source)  # nothing that is not GGUF gets in
    with progress.task(f"verifying {found.filename}", found.size):
        sha256 = sha256_file(found.path, progress.advance)
    if found.sha256 not in (None, sha256):
        raise _broken_copy(found.path, str(found.sha256), sha256, found.tool)
    known = registry.by_sha256(sha256)
    return Record(
        file=next(file.filename for file in known[1].files if file.sha256 == sha256) if known else found.filename,
        size=found.size,
        sha256=sha256,
        model=f"{known[0].name}:{known[1].name}" if known else found.name,
        source=found.name,
        revision=found.revision,
        license=known[0].license if known else None,
        pinned=found.sha256 is not None or known is not None,
    )


def _broken_copy(path: Path, expected: str, actual: str, tool: str) -> ChecksumMismatchError:
    hint = f"the copy of {tool} is broken; pull the model"
    return ChecksumMismatchError(str(path), expected=expected, actual=actual, hint=hint)


def _chosen(name: str, settings: Settings, registry: Registry) -> list[Found]:
    """The files that a name means; those of the registry have its hash."""
    path = Path(name.removeprefix("file:"))
    if path.is_file():
        return [_plain(shard) for shard in shards(path)]
    if path.exists() and "/" in name:
        raise MissingFileError(f"{name} is {'a folder' if path.is_dir() else 'no plain file'}")
    every = find_all(settings.environ)
    matching = [found for found in every if name in (found.name, found.name.partition("@")[0], found.sha256)]
    matching = matching or [found for found in every if found.filename == name]
    if matching:
        if len({(found.size, found.sha256 or str(found.path)) for found in matching}) > 1:
            shown = ", ".join(sorted(found.name for found in matching)[:5])
            raise UsageError(f"{name}: several files could be meant: {shown}", hint="give the path of one")
        return _all_shards(matching[0], every)
    with contextlib.suppress(UnknownModelError):
        reference = parse_reference(name)
        if isinstance(reference, NameRef):
            return [_pinned(name, file, every, settings) for file in registry.find(reference)[1].files]
    raise MissingFileError(f"no other tool on this machine has {name!r}", hint="`tea-models adopt` shows what there is")


def _plain(path: Path) -> Found:
    real = path.resolve()
    return Found("folder", f"file:{path.absolute()}", path.name, real, real.stat().st_size, None)


def _pinned(name: str, file: ModelFile, every: list[Found], settings: Settings) -> Found:
    """The copy of a file of the registry that another tool has."""
    sha256 = file.sha256 or ""
    match = find_by_sha256(sha256, size=file.size, environ=settings.environ) if sha256 else None
    if match is None:
        for broken in named_by(sha256, settings.environ):
            raise _broken_copy(broken, sha256, sha256_file(broken), "every other tool")
        hint = f"tea-models pull {name}"
        raise MissingFileError(f"{name}: no other tool on this machine has {file.filename}", hint=hint)
    real = match[0].resolve()
    owner = next((found for found in every if found.path == real), None) or _plain(real)
    return replace(owner, filename=file.filename, sha256=sha256)


def _all_shards(found: Found, every: list[Found]) -> list[Found]:
    """All files of the model that a file is a part of, in order."""
    by_name = {other.name: other for other in every if other.tool == found.tool}
    files = []
    for part in shard_names(found.filename):
        name = found.name.replace(found.filename, part)
        if name not in by_name:
            raise MissingFileError(f"{found.tool} has no {part}, which {found.filename} needs", hint="pull the model")
        files.append(by_name[name])
    return files


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _described(found: Found) -> Mapping[str, Any]:
    try:
        with FileSource(found.path) as source:
            header = read_header(source)
    except TeaModelsError as error:
        return {"problem": error.message}
    file_type = header.metadata.get("general.file_type")
    texts = [header.metadata.get(f"general.{key}") for key in ("architecture", "name")]
    architecture, title = (text if isinstance(text, str) else None for text in texts)
    quantization = file_type_name(file_type) if isinstance(file_type, int) else None
    return {"architecture": architecture, "title": title, "quantization": quantization}
