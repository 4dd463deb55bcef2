"""Reading bundles (see `bundle`): a tar file from anybody, every file of which is checked before it gets its name.

`tarfile` understands links, devices, sparse files and headers of any length; here the file is read by something that
understands none of that: nothing but plain files under plain names.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from tea_models.caller import Caller
from tea_models.disk.atomic import replacing
from tea_models.disk.operations import remove_partial, writing
from tea_models.disk.regular import open_regular
from tea_models.disk.space import check_space
from tea_models.engine.archives import carried
from tea_models.errors import ChecksumMismatchError, ConfigError, IntegrityError, MissingFileError, StoreError
from tea_models.files import ModelFile
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import read_header
from tea_models.lockfile import Lock, LockedModel, parse_lock
from tea_models.registry.engines import Catalog, Host
from tea_models.sources.receiver import receive
from tea_models.store import Record, Store, key_of

LOCK: Final = "models.lock"
LICENSES: Final = "LICENSES.txt"
_MAX_LOCK: Final = 4 << 20
_MAX_SIZE: Final = 1 << 50
# One folder deep, letters, digits, `.`, `_` and `-`: nothing that could leave a folder or mean something to a shell.
_NAME: Final = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,60}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,80}\Z")
_AGAIN: Final = "copy the bundle again, or make it again with `tea-models bundle`"


@dataclass(frozen=True, slots=True)
class BundledFile:
    """A model file of a bundle: what the lock says of it, where it lies in the store, and what was done with it."""

    record: Record
    path: Path
    status: Literal["bundled", "unpacked", "present", "repaired"]

    def to_json(self) -> dict[str, Any]:
        names = ("filename", "size", "sha256", "source", "revision", "license")
        values = {name: getattr(self.record, name) for name in names}
        return {"name": self.record.model, **values, "status": self.status, "path": str(self.path)}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was written or read: the tar file, its bytes, its model files, and the lock in it."""

    path: Path
    size: int
    files: tuple[BundledFile, ...]
    lock: Lock


def record_of(model: LockedModel, file: ModelFile, size: int) -> Record:
    """What the store is to know of a locked file."""
    revision = next((source.revision for source in file.sources if source.revision), None)
    source, sha256 = str(file.sources[0]), str(file.sha256)
    return Record(file.filename, size, sha256, model.reference, source, revision, model.license)


def unpack_bundle(path: Path, caller: Caller, *, only: frozenset[str] | None = None) -> Bundle:
    """Bring the models of a bundle (all, or those whose SHA-256 is in `only`) into the store, each checked first."""
    try:
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
        with open_regular(path) as file, caller.progress.task(path.name, path.stat().st_size):
            return _Unpacking(path, file, caller, only).run()
    except PermissionError as error:
        raise StoreError(f"{error.filename or path}: {os.strerror(error.errno or 0).lower()}") from None


class _Unpacking:
    """The reading of one bundle."""

    def __init__(self, path: Path, file: BinaryIO, caller: Caller, only: frozenset[str] | None) -> None:
        self._path, self._caller, self._progress, self._only = path, caller, caller.progress, only
        self._store = Store.of(caller.settings)
        self._file, self._left = file, 0  # bytes of the current member that were not read
        self._waiting: dict[str, list[tuple[LockedModel, ModelFile]]] = {}
        self._broken: set[str] = set()
        self._done: list[BundledFile] = []

    def run(self) -> Bundle:
        lock: Lock | None = None
        seen: set[str] = set()
        for name, size in self._members():
            if name in seen:
                raise self._damaged(f"{name} is in it twice")
            seen.add(name)
            if name == LOCK:
                lock = self._read_lock(size)
            elif name.startswith("models/") and lock is not None:
                self._model(name.removeprefix("models/"), size)
            elif name.startswith("engine/") and lock is not None and lock.engine is not None:
                self._engine(name.removeprefix("engine/"), lock.engine)
            elif name not in (LICENSES, "tea-bundle.json") and not name.startswith("profiles/"):  # earlier releases'
                raise self._damaged(f"{name} does not belong there in a bundle")
        lacking = [waiting[0][1].filename for waiting in self._waiting.values()]
        if lock is None or lacking:
            raise self._damaged(f"{lacking[0] if lacking else LOCK} is not in it")
        return Bundle(self._path, self._path.stat().st_size, tuple(self._done), lock)

    def _members(self) -> Iterator[tuple[str, int]]:
        """Name and size of each member, whose bytes `_chunks` reads."""
        while any(block := self._exactly(tarfile.BLOCKSIZE)):
            try:
                info = tarfile.TarInfo.frombuf(block, "latin-1", "strict")
            except tarfile.HeaderError as error:
                raise self._damaged(f"it is no tar file, or it is damaged ({error})") from None
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise self._damaged(f"{info.name[:60]!r} is no plain file, and a bundle has nothing else")
            if not _NAME.match(info.name) or not 0 <= info.size < _MAX_SIZE:
                raise self._damaged(f"no bundle has a member {info.name[:60]!r} of {info.size:,} bytes")
            self._left = info.size
            yield info.name, info.size
            for _ in self._chunks():
                pass  # what nobody wanted
            self._exactly(-info.size % tarfile.BLOCKSIZE)

    def _chunks(self) -> Iterator[bytes]:
        while self._left:
            chunk = self._file.read(min(self._left, 1 << 20))
            if not chunk:
                raise self._damaged("it is cut off")
            self._left -= len(chunk)
            self._progress.advance(len(chunk))
            yield chunk

    def _exactly(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise self._damaged("it is cut off")
        return data

    def _read_lock(self, size: int) -> Lock:
        if size > _MAX_LOCK:
            raise self._damaged(f"its {LOCK} has {size:,} bytes")
        try:
            lock = parse_lock(b"".join(self._chunks()).decode("utf-8", "replace"), LOCK)
        except ConfigError as error:
            raise self._damaged(error.message) from None
        for model in lock.models.values():
            for file in model.files:
                self._waiting.setdefault(str(file.sha256), []).append((model, file))
        return lock

    def _model(self, sha256: str, size: int) -> None:
        waiting = self._waiting.pop(sha256, None)
        if waiting is None or any(file.size not in (None, size) for _, file in waiting):
            raise self._damaged(f"models/{sha256} is not as {LOCK} says")
        wanted = self._only is None or sha256 in self._only
        lacking = [(model, file) for model, file in waiting if wanted and not self._present(model, file, size)]
        if not lacking:
            return
        model, file = lacking[0]
        check_space(self._store.root, size, file.filename)
        with self._store.partial(key_of(sha256, "")) as partial:
            self._receive(partial, file)
            record = record_of(model, file, size)
            with self._store.naming():
                existing = self._add(record, self._store.publish(partial, self._target(model, file), record))
        for model, file in lacking[1:]:
            record = record_of(model, file, size)
            with self._store.naming():
                self._add(record, self._store.link_in(existing, self._target(model, file), record))

    def _engine(self, sha256: str, catalog: Catalog) -> None:
        """Keep an archive of the locked engine for its installation, if it is for this machine."""
        host = Host.here()
        mine = [catalog.binding, *(entry for entry in catalog.engines if host.objection(entry.target) is None)]
        archive = next((part for part in mine if part.sha256 == sha256), None)
        if archive is None:
            return
        place = carried(archive, self._caller)
        place.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with replacing(place) as writer:
            for chunk in self._chunks():
                digest.update(chunk)
                writer.write(chunk)
            if digest.hexdigest() != sha256:
                what, actual = f"{self._path}: {archive.filename}", digest.hexdigest()
                raise ChecksumMismatchError(what, expected=sha256, actual=actual, hint=_AGAIN)

    def _present(self, model: LockedModel, file: ModelFile, size: int) -> bool:
        """Whether the store has a file where its model is, or is to be."""
        if self._store.set_aside_broken(file):
            self._broken.add(str(file.sha256))
        paths = self._store.paths_of(model.files)
        path = paths[model.files.index(file)] if paths is not None else self._target(model, file)
        known = self._store.record_of(path)
        if known is None or path.name != file.filename or not known.means(file) or not self._store.intact(known):
            return False
        self._done.append(BundledFile(record_of(model, file, size), path, "present"))
        return True

    def _receive(self, partial: Path, file: ModelFile) -> None:
        remove_partial(partial)  # what a download of the same file may have begun
        with writing(self._store.root):
            actual = receive(lambda _: self._chunks(), partial, name=file.filename).sha256
        try:
            if actual != file.sha256:
                what = f"{self._path}: {file.filename}"
                raise ChecksumMismatchError(what, expected=str(file.sha256), actual=actual, hint=_AGAIN)
            with FileSource(partial) as source:
                read_header(source)
        except IntegrityError:
            partial.unlink(missing_ok=True)
            raise

    def _target(self, model: LockedModel, file: ModelFile) -> Path:
        """Where a file lies, in a folder where all files of its model can lie together."""
        folders = ["bundle", f"bundle/{str(model.files[0].sha256)[:12]}"]
        return self._store.folder_for(model.files, folders) / file.filename

    def _add(self, record: Record, path: Path) -> Path:
        self._done.append(BundledFile(record, path, "repaired" if record.sha256 in self._broken else "unpacked"))
        return path

    def _damaged(self, problem: str) -> IntegrityError:
        return IntegrityError(f"{self._path}: {problem}", hint=_AGAIN)
