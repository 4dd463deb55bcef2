"""Reading bundles (see `bundling`): a tar file from anybody, every file of which is checked before it gets its name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tea_models.disk.regular import open_regular, writing_own
from tea_models.disk.space import check_space
from tea_models.errors import ChecksumMismatchError, IntegrityError, MissingFileError, StoreError, UsageError
from tea_models.files import ModelFile, Source
from tea_models.gguf import FileSource, read_header
from tea_models.lock.tarball import Reader
from tea_models.refs import parse_reference
from tea_models.store import NameTakenError, Record, Store, check_name, key_of, remove_partial, writing
from tea_models.yamlfile import newer_schema

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.caller import Caller

SCHEMA: Final = "tea.bundle/1"
MANIFEST: Final = "tea-bundle.json"
LOCK: Final = "models.lock"
LICENSES: Final = "LICENSES.txt"
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
_MAX_SMALL: Final = 16 << 20
_AGAIN: Final = "copy the bundle again, or make it again with `tea-models bundle`"


@dataclass(frozen=True, slots=True)
class BundledFile:
    """A model file of a bundle.

    Attributes:
        record: What the bundle says about it; `model` is the reference in the lock that it belongs to.
        path: Where it lies in the store.
        status: `bundled`; or, when a bundle is read, `unpacked`, `present` (the store had it) or `repaired` (the store
            had other bytes in its place).
    """

    record: Record
    path: Path
    status: Literal["bundled", "unpacked", "present", "repaired"]

    def manifest(self) -> dict[str, Any]:
        """As the bundle's own list has it."""
        names = ("size", "sha256", "source", "revision", "license")
        document = {name: getattr(self.record, name) for name in names}
        return {"name": self.record.model, "filename": self.record.filename} | document

    def to_json(self) -> dict[str, Any]:
        return self.manifest() | {"status": self.status, "path": str(self.path)}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was written or read: the tar file, its bytes, its model files, and the text of its lock."""

    path: Path
    size: int
    files: tuple[BundledFile, ...]
    lock_text: str


def unpack_bundle(path: Path, caller: Caller, *, only: frozenset[str] | None = None) -> Bundle:
    """Bring the models of a bundle (all, or those whose SHA-256 is in `only`) into the store, each checked first.

    Raises:
        MissingFileError: There is no such file.
        IntegrityError: It is no bundle, cut, damaged, or a file in it is not what it should be.
        DiskFullError, StoreError: The store can't be written.
    """
    try:
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
        with open_regular(path) as file:
            caller.progress.start(path.name, path.stat().st_size, 0)
            try:
                return _Unpacking(path, file, caller, only).run()
            finally:
                caller.progress.finish()
    except PermissionError as error:
        raise StoreError(f"{error.filename or path}: {os.strerror(error.errno or 0).lower()}") from None


class _FileModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Line
    filename: str
    size: int = Field(gt=0, lt=1 << 50)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    source: Line
    revision: Line | None = None
    license: Line | None = None

    def record(self) -> Record:
        """What it says, checked; a `UsageError` or `StoreError` where it names what can't be."""
        check_name(self.filename)
        Source.parse(self.source)
        parse_reference(self.name)
        return Record(self.filename, self.size, self.sha256, self.name, self.source, self.revision, self.license)


class _ManifestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    schema_: Literal["tea.bundle/1"] = Field(alias="schema")
    files: list[_FileModel]


class _Unpacking:
    """The reading of one bundle."""

    def __init__(self, path: Path, file: BinaryIO, caller: Caller, only: frozenset[str] | None) -> None:
        self._path, self._progress, self._only = path, caller.progress, only
        self._store = Store.of(caller.settings)
        self._reader = Reader(file, str(path))
        self._waiting: dict[str, list[Record]] = {}
        self._models: dict[str, tuple[ModelFile, ...]] = {}
        self._broken: set[str] = set()
        self._done: list[BundledFile] = []

    def run(self) -> Bundle:
        lock_text = ""
        seen: set[str] = set()
        for name, size in self._reader.members():
            if name in seen:
                raise self._damaged(f"{name} is in it twice")
            seen.add(name)
            if len(seen) == 1:
                if name != MANIFEST:
                    raise self._damaged("it does not begin as `tea-models bundle` writes it")
                self._read_manifest(self._small(size))
            elif name.startswith("models/"):
                self._model(name.removeprefix("models/"), size)
            elif name == LOCK:
                lock_text = self._small(size).decode("utf-8", "replace")
            elif name != LICENSES and not name.startswith("profiles/"):
                raise self._damaged(f"{name} does not belong in a bundle")
        lacking = [records[0].filename for records in self._waiting.values()] or ([] if seen else [MANIFEST])
        if lacking:
            raise self._damaged(f"{lacking[0]} is not in it")
        return Bundle(self._path, self._path.stat().st_size, tuple(self._done), lock_text)

    def _read_manifest(self, data: bytes) -> None:
        try:
            document = json.loads(data)
            newer = newer_schema(document, SCHEMA)
            if newer:
                raise self._damaged(newer)
            records = [file.record() for file in _ManifestModel.model_validate(document).files]
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise self._damaged(f"{MANIFEST}: {place}: {first['msg']}") from None
        except (ValueError, RecursionError, UsageError, StoreError) as error:
            raise self._damaged(f"{MANIFEST}: {getattr(error, 'message', None) or error}") from None
        for record in records:
            self._waiting.setdefault(record.sha256, []).append(record)
            self._models[record.model] = (*self._models.get(record.model, ()), record.as_file())

    def _model(self, sha256: str, size: int) -> None:
        records = self._waiting.pop(sha256, None)
        if records is None or any(record.size != size for record in records):
            raise self._damaged(f"models/{sha256} is not as {MANIFEST} says")
        lacking = []
        if self._only is None or sha256 in self._only:
            lacking = [record for record in records if not self._present(record)]
        if not lacking:
            for chunk in self._reader.chunks():
                self._progress.advance(len(chunk))
            return
        check_space(self._store.root, size, lacking[0].filename)
        with self._store.partial(key_of(sha256, "")) as partial:
            self._receive(partial, lacking[0])
            self._publish(partial, lacking[0])
        for record in lacking[1:]:
            existing = self._store.path_with(sha256)
            assert existing is not None
            self._add(record, self._store.link_in(existing, self._folder(record) / record.filename, record))

    def _present(self, record: Record) -> bool:
        """Whether the store has a file where its model is, or is to be."""
        file = record.as_file()
        files = self._models[record.model]
        if self._store.set_aside_broken(file):
            self._broken.add(record.sha256)
        paths = self._store.paths_of(files)
        path = paths[files.index(file)] if paths is not None else self._folder(record) / record.filename
        known = self._store.record_of(path)
        if known is None or path.name != file.filename or not known.means(file) or not self._store.intact(known):
            return False
        self._done.append(BundledFile(record, path, "present"))
        return True

    def _receive(self, partial: Path, record: Record) -> None:
        remove_partial(partial)  # what a download of the same file may have begun
        digest = hashlib.sha256()
        with writing(self._store.root), writing_own(partial) as writer:
            for chunk in self._reader.chunks():
                digest.update(chunk)
                writer.write(chunk)
                self._progress.advance(len(chunk))
        try:
            if digest.hexdigest() != record.sha256:
                what, actual = f"{self._path}: {record.filename}", digest.hexdigest()
                raise ChecksumMismatchError(what, expected=record.sha256, actual=actual, hint=_AGAIN)
            with FileSource(partial) as source:
                read_header(source)
        except IntegrityError:
            partial.unlink(missing_ok=True)
            raise

    def _publish(self, partial: Path, record: Record) -> None:
        for _ in range(3):
            with contextlib.suppress(NameTakenError):
                self._add(record, self._store.publish(partial, self._folder(record) / record.filename, record))
                return
        raise StoreError(f"{record.filename}: other processes keep taking the name", hint="run the command again")

    def _folder(self, record: Record) -> Path:
        """Where all files of a model can lie together."""
        files = self._models[record.model]
        return self._store.folder_for(files, ["bundle", f"bundle/{str(files[0].sha256)[:12]}"])

    def _add(self, record: Record, path: Path) -> None:
        status: Literal["repaired", "unpacked"] = "repaired" if record.sha256 in self._broken else "unpacked"
        self._done.append(BundledFile(record, path, status))

    def _small(self, size: int) -> bytes:
        if size > _MAX_SMALL:
            raise self._damaged(f"its bookkeeping has {size:,} bytes")
        return b"".join(self._reader.chunks())

    def _damaged(self, problem: str) -> IntegrityError:
        return IntegrityError(f"{self._path}: {problem}", hint=_AGAIN)
