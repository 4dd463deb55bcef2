"""`locate`: what a reference means, and where its bytes can be read: in the store, on this machine, or far away."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tea_models.caller import Caller
from tea_models.errors import (
    LockError,
    MissingFileError,
    OfflineError,
    SourceUnavailableError,
    UnknownModelError,
    UsageError,
)
from tea_models.files import Artifact, ModelFile, Source, shard_names
from tea_models.gguf.bytes_source import ByteSource, FileSource
from tea_models.refs import FileRef, HubRef, NameRef, Reference, UrlRef, WheelRef, parse_reference, quantization_of
from tea_models.registry.entries import Entry, Registry
from tea_models.settings import Settings
from tea_models.sources import open_source, resolve
from tea_models.sources.local import shards
from tea_models.store import Record, Store

if TYPE_CHECKING:
    from tea_models.lockfile import Lock


@dataclass(frozen=True, slots=True)
class Located:
    artifact: Artifact
    paths: tuple[Path, ...]  # on this machine, all shards in order; empty if they are not here
    caller: Caller = field(repr=False)
    entry: Entry | None = None  # of the registry, if a name was asked for
    lock: Path | None = None  # the `models.lock` that says what it is, if that does

    def open_source(self, index: int = 0) -> ByteSource:
        """Open a file (shard) for reading parts of it, here or over the network."""
        if self.paths:
            return FileSource(self.paths[index])
        return open_source(self.artifact.files[index], self.caller)


def locate(text: str, caller: Caller, *, remote: bool = True) -> Located:
    """Find what a reference means.

    A path is taken as it is. Anything else means what the nearest `models.lock` says, else what the registry or the
    reference itself says; it is looked for in the store first, and with `remote` it may stay where it is.
    """
    reference = parse_reference(text)
    if isinstance(reference, FileRef):
        return _file(text, reference.path, caller)
    entry = None
    artifact = locked_artifact(text, caller)
    lock = caller.settings.lock_file if artifact is not None else None
    if artifact is None and isinstance(reference, NameRef):
        try:
            entry, variant = Registry.load(caller.settings).find(reference)
        except UnknownModelError:
            if reference.variant is None and Path(text).is_file():  # a file without a suffix
                return _file(text, Path(text), caller)
            raise
        artifact = entry.artifact(variant, text)
    here = caller.settings.offline or not remote or _is_fixed(reference)
    artifact = artifact or resolved(text, caller, recorded_first=here)
    store = Store.of(caller.settings)
    paths = store.paths_of(artifact.files)
    if paths is not None:
        return Located(artifact, paths, caller, entry, lock)
    if caller.settings.offline:
        hint = f"without --offline: tea-models pull {text}"
        raise OfflineError(f"{text} is not in the store, and nothing may be fetched (--offline)", hint=hint)
    if not remote:
        raise MissingFileError(f"{text} is not in the store ({store.root})", hint=f"tea-models pull {text}")
    return Located(artifact, (), caller, entry, lock)


def locked_artifact(text: str, caller: Caller) -> Artifact | None:
    """What the nearest `models.lock` says about a reference, which may have to be locked; None if it says nothing."""
    path = caller.settings.lock_file
    lock = _read(path)
    model = lock.find(text) if lock is not None else None
    if model is not None:
        caller.note(f"{text}: as locked in {path}")
        return model.artifact()
    if caller.settings.locked:
        where = f"{path} does not have it" if path is not None else "there is no models.lock here or above"
        hint = f"tea-models lock {text}"
        raise LockError(f"{text} is not locked, and only locked models may be used: {where}", hint=hint)
    return None


def _read(path: Path | None) -> Lock | None:
    """The lock; its module is imported only where there is one: pydantic takes a tenth of a second."""
    if path is None:
        return None
    from tea_models.lockfile import read_lock

    return read_lock(path)


def resolved(text: str, caller: Caller, registry: Registry | None = None, *, recorded_first: bool) -> Artifact:
    """What a reference means, or meant when it was pulled: that first, or only where its host can't be asked."""
    recorded = recorded_artifact(text, caller.settings) if recorded_first else None
    if recorded is not None:
        return recorded
    try:
        return resolve(text, caller, registry)
    except SourceUnavailableError as error:
        recorded = recorded_artifact(text, caller.settings)
        if recorded is None:
            raise
        caller.note(f"{error.message}; taking what was pulled before")
        return recorded


def recorded_artifact(text: str, settings: Settings) -> Artifact | None:
    """What the store has under a reference to some host, without asking the host; None if it has nothing."""
    reference = parse_reference(text)
    if isinstance(reference, NameRef | FileRef):
        return None
    store = Store.of(settings)
    records = [item.record for item in store.installed() if item.state != "missing" and _was(item.record, reference)]
    if not records:
        return None
    names = {record.filename: record for record in records}
    shards_of_first = shard_names(records[0].filename)
    if not names.keys() >= set(shards_of_first):
        return None
    chosen = [names[name] for name in shards_of_first]
    if isinstance(reference, HubRef) and len({shard_names(record.filename)[0] for record in records}) > 1:
        hint = "name the file, or its quantisation"
        raise UsageError(f"{text}: the store has several files of it: {', '.join(sorted(names))}", hint=hint)
    files = tuple(record.as_file() for record in chosen)
    return Artifact(text, chosen[0].model, None, files, chosen[0].license)


def _was(record: Record, asked: Reference) -> bool:
    """Whether a record is of a file that a reference means."""
    if str(asked) in (record.model, record.source):
        return True
    try:
        source = Source.parse(record.source).parts[0]
    except UsageError:
        return False
    if isinstance(asked, UrlRef) and isinstance(source, UrlRef):
        return asked.url == source.url and asked.sha256 in (None, record.sha256)
    if isinstance(asked, HubRef) and isinstance(source, HubRef):
        return (
            asked.repo.lower() == source.repo.lower()
            and asked.path in (None, source.path)
            and (asked.revision is None or (record.revision or "").startswith(asked.revision))
            and (asked.quantization is None or quantization_of(record.filename) == asked.quantization.upper())
        )
    return asked == source


def _is_fixed(reference: Reference) -> bool:
    """Whether a reference means the same bytes for ever, so that the store can answer for its host."""
    match reference:
        case HubRef(path=path, revision=revision):
            return path is not None and revision is not None and len(revision) == 40
        case UrlRef(sha256=sha256):
            return sha256 is not None
    return isinstance(reference, WheelRef)


def _file(text: str, path: Path, caller: Caller) -> Located:
    if not path.exists() and not path.is_symlink() and path.name == str(path) and text == path.name:
        stored = Store.of(caller.settings).root / path.name  # a bare name may also be that of a file in the store
        path = stored if stored.is_file() else path
    paths = shards(path)
    if caller.settings.locked:
        _require_locked(text, paths, caller)
    files = tuple(ModelFile(part.name, _size(part), None, (Source((FileRef(part),)),)) for part in paths)
    return Located(Artifact(text, text, None, files), paths, caller)


def _require_locked(text: str, paths: tuple[Path, ...], caller: Caller) -> None:
    """Refuse a path whose bytes are not those of a locked file in the store."""
    store, path_of_lock = Store.of(caller.settings), caller.settings.lock_file
    lock = _read(path_of_lock)
    known = {file.sha256 for file in lock.files} if lock is not None else set()
    for path in paths:
        record = store.record_of(store.own(path.absolute()))
        if record is None or record.sha256 not in known or not store.intact(record):
            raise LockError(
                f"{text}: only locked models may be used, and {path_of_lock or 'no models.lock'} has no such file",
                hint="name a model of the lock",
            )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None  # opening it says what is wrong
