"""Reading bundles (see `bundling`): a tar file from anybody, every file of which is checked before it gets its name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tea_models.disk.regular import writing_own
from tea_models.errors import ChecksumMismatchError, IntegrityError, MissingFileError, StoreError, UsageError
from tea_models.gguf import FileSource, read_header
from tea_models.lock.tarball import Reader
from tea_models.refs import parse_reference
from tea_models.store import NameTakenError, Record, Store, check_name, check_space, key_of, remove_partial, writing

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.caller import Caller

SCHEMA: Final = "tea.bundle/1"
MANIFEST: Final = "tea-bundle.json"
LOCK: Final = "models.lock"
LICENSES: Final = "LICENSES.txt"
_MAX_SMALL: Final = 16 << 20
_AGAIN: Final = "copy the bundle again, or make it again with `tea-models bundle`"


@dataclass(frozen=True, slots=True)
class BundledFile:
    """A model file of a bundle.

    Attributes:
        name: The reference in the lock that it belongs to.
        filename: Its upstream name.
        size: Bytes.
        sha256: Of its bytes.
        source: Where they came from.
        revision: Commit or version, if the source has one.
        license: Its licence, if known.
        path: Where it lies in the store.
        status: `bundled`; or, when a bundle is read, `unpacked` or `present` (the store had it).
    """

    name: str
    filename: str
    size: int
    sha256: str
    source: str
    revision: str | None
    license: str | None
    path: Path
    status: Literal["bundled", "unpacked", "present"]

    def to_json(self) -> dict[str, Any]:
        names = ("name", "filename", "size", "sha256", "source", "revision", "license", "status")
        return {name: getattr(self, name) for name in names} | {"path": str(self.path)}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was written or read.

    Attributes:
        path: The tar file.
        size: Its bytes.
        files: The model files in it.
        lock_text: The text of the lock in it.
    """

    path: Path
    size: int
    files: tuple[BundledFile, ...]
    lock_text: str


def unpack_bundle(path: Path, caller: Caller, *, only: frozenset[str] | None = None) -> Bundle:
    """Bring the models of a bundle into the store, each checked before it gets its name.

    Args:
        path: The tar file.
        caller: Its settings say where the store is; told about bytes read.
        only: SHA-256 of the files to take; all by default.

    Raises:
        MissingFileError: There is no such file.
        IntegrityError: It is no bundle, cut, damaged, or a file in it is not what it should be.
        DiskFullError, StoreError: The store can't be written.
    """
    try:
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
        with path.open("rb") as file:
            caller.progress.start(path.name, path.stat().st_size, 0)
            try:
                return _Unpacking(path, file, caller, only).run()
            finally:
                caller.progress.finish()
    except PermissionError as error:
        raise StoreError(f"{error.filename or path}: {os.strerror(error.errno or 0).lower()}") from None


class _FileModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    filename: str
    size: int = Field(gt=0, lt=1 << 50)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    source: str
    revision: str | None = None
    license: str | None = None


class _ManifestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    schema_: Literal["tea.bundle/1"] = Field(alias="schema")
    files: list[_FileModel]


class _Unpacking:
    """The reading of one bundle."""

    def __init__(self, path: Path, file: BinaryIO, caller: Caller, only: frozenset[str] | None) -> None:
        self._path, self._store, self._progress, self._only = (
            path,
            Store(caller.settings.store_dir),
            caller.progress,
            only,
        )
        self._reader = Reader(file, str(path))
        self._waiting: dict[str, list[_FileModel]] = {}
        self._done: list[BundledFile] = []

    def run(self) -> Bundle:
        lock_text = ""
        seen: set[str] = set()
        for name, size in self._reader.members():
            if name in seen:
                raise self._broken(f"{name} is in it twice")
            seen.add(name)
            if len(seen) == 1:
                if name != MANIFEST:
                    raise self._broken("it does not begin as `tea-models bundle` writes it")
                self._read_manifest(self._small(size))
            elif name.startswith("models/"):
                self._model(name.removeprefix("models/"), size)
            elif name == LOCK:
                lock_text = self._small(size).decode("utf-8", "replace")
            elif name != LICENSES and not name.startswith("profiles/"):
                raise self._broken(f"{name} does not belong in a bundle")
        lacking = next((files[0].filename for files in self._waiting.values()), None)
        if lacking is not None or not seen:
            raise self._broken(f"{lacking or MANIFEST} is not in it")
        return Bundle(self._path, self._path.stat().st_size, tuple(self._done), lock_text)

    def _read_manifest(self, data: bytes) -> None:
        try:
            manifest = _ManifestModel.model_validate(json.loads(data))
            for file in manifest.files:
                check_name(file.filename)
                for part in file.source.split(" + "):
                    parse_reference(part)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise self._broken(f"{MANIFEST}: {place}: {first['msg']}") from None
        except (ValueError, RecursionError, UsageError, StoreError) as error:
            raise self._broken(f"{MANIFEST}: {getattr(error, 'message', None) or error}") from None
        for file in manifest.files:
            self._waiting.setdefault(file.sha256, []).append(file)

    def _model(self, sha256: str, size: int) -> None:
        files = self._waiting.pop(sha256, None)
        if files is None or any(file.size != size for file in files):
            raise self._broken(f"models/{sha256} is not as {MANIFEST} says")
        if self._only is not None and sha256 not in self._only:
            self._skip()
            return
        lacking = [file for file in files if not self._present(file)]
        if not lacking:
            self._skip()
            return
        check_space(self._store.root, size, lacking[0].filename)
        with self._store.partial(key_of(sha256, "")) as partial:
            self._receive(partial, lacking[0])
            self._publish(partial, lacking[0])
        for file in lacking[1:]:
            existing = self._store.path_with(sha256)
            assert existing is not None
            target = self._folder(file) / file.filename
            self._add(file, self._store.link_in(existing, target, _record(file)), "unpacked")

    def _present(self, file: _FileModel) -> bool:
        path = self._store.path_with(file.sha256)
        if path is None or path.name != file.filename:
            return False
        self._add(file, path, "present")
        return True

    def _receive(self, partial: Path, file: _FileModel) -> None:
        remove_partial(partial)  # what a download of the same file may have begun
        digest = hashlib.sha256()
        with writing(self._store.root), writing_own(partial) as writer:
            for chunk in self._reader.chunks():
                digest.update(chunk)
                writer.write(chunk)
                self._progress.advance(len(chunk))
        try:
            if digest.hexdigest() != file.sha256:
                what = f"{self._path}: {file.filename}"
                raise ChecksumMismatchError(what, expected=file.sha256, actual=digest.hexdigest(), hint=_AGAIN)
            with FileSource(partial) as source:
                read_header(source)
        except IntegrityError:
            partial.unlink(missing_ok=True)
            raise

    def _publish(self, partial: Path, file: _FileModel) -> None:
        for _ in range(3):
            with contextlib.suppress(NameTakenError):
                target = self._folder(file) / file.filename
                self._add(file, self._store.publish(partial, target, _record(file)), "unpacked")
                return
        raise StoreError(f"{file.filename}: other processes keep taking the name", hint="run the command again")

    def _folder(self, file: _FileModel) -> Path:
        return self._store.folder_for([(file.filename, file.sha256)], ["bundle", f"bundle/{file.sha256[:12]}"])

    def _add(self, file: _FileModel, path: Path, status: Literal["unpacked", "present"]) -> None:
        values = (file.name, file.filename, file.size, file.sha256, file.source, file.revision, file.license)
        self._done.append(BundledFile(*values, path, status))

    def _small(self, size: int) -> bytes:
        if size > _MAX_SMALL:
            raise self._broken(f"its bookkeeping has {size:,} bytes")
        return b"".join(self._reader.chunks())

    def _skip(self) -> None:
        for chunk in self._reader.chunks():
            self._progress.advance(len(chunk))

    def _broken(self, problem: str) -> IntegrityError:
        return IntegrityError(f"{self._path}: {problem}", hint=_AGAIN)


def _record(file: _FileModel) -> Record:
    return Record(
        file=file.filename,
        size=file.size,
        sha256=file.sha256,
        model=file.name,
        source=file.source,
        revision=file.revision,
        license=file.license,
        pinned=True,
    )
