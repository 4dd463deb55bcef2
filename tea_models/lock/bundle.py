"""Bundles: the files of a lock in one tar file, for machines without network.

    models.lock         the lock of exactly these models
    LICENSES.txt        the licence of each model, and where its files say it is
    engine/<sha256>     with `--with-engine`: the archives that the locked engines are made of
    models/<sha256>     the files

Hashes are checked when a bundle is written (a store may have rotted) and when it is read, before a file gets its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tea_models.caller import Caller
from tea_models.disk.atomic import replacing_document
from tea_models.disk.regular import open_regular
from tea_models.engine.archives import Archives
from tea_models.errors import ChecksumMismatchError, LockError, MissingFileError, TeaModelsError, UsageError
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import read_header
from tea_models.lock.pins import make_lock
from tea_models.lock.unbundle import LICENSES, LOCK, Bundle, BundledFile, record_of
from tea_models.lockfile import Lock, LockedModel, format_lock, read_lock
from tea_models.progress import Progress
from tea_models.registry.engines import Catalog
from tea_models.store import Store

BROKEN = "the file in the store is broken: tea-models verify --repair"


def bundle(
    output: Path, caller: Caller, *, lock_path: Path, names: Sequence[str] = (), with_engine: bool = False
) -> Bundle:
    """Write the models of a lock, or those of `names`, into a tar file; replaced if there is one.

    Without a lock, `names` are locked for the bundle alone. What the store lacks or has broken is an error. With the
    engine go the archives that the lock's engines are made of, fetched for it.
    """
    if output.is_file() and output.stat().st_size and not tarfile.is_tarfile(output):
        raise UsageError(f"{output} is there and no bundle: it is not overwritten", hint="name another --output")
    with replacing_document(output) as file:  # before anything that takes long: can it be written at all?
        lock = _chosen(lock_path, names, caller, with_engine=with_engine)
        store = Store.of(caller.settings)
        files = [found for model in lock.models.values() for found in located(store, model)]
        models = {item.record.sha256: item for item in files}.values()
        with (
            caller.progress.task(output.name, sum(model.record.size for model in models)),
            # Every `tar` can list and unpack GNU's format, also with files over 8 GiB.
            tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive,
        ):
            for name, data in ((LOCK, format_lock(lock).encode()), (LICENSES, _licenses(files).encode())):
                archive.addfile(_member(name, len(data)), io.BytesIO(data))
            for model in models:
                _add(archive, f"models/{model.record.sha256}", model.path, model.record.sha256, caller.progress)
            if lock.engine is not None:
                _add_engine(archive, lock.engine, caller)
    return Bundle(output, output.stat().st_size, tuple(files), lock)


def _chosen(lock_path: Path, names: Sequence[str], caller: Caller, *, with_engine: bool) -> Lock:
    """The lock that goes into the bundle: made for its models by name, since their `models.yaml` does not go along."""
    if not lock_path.exists():
        if not names:
            raise MissingFileError(f"{lock_path}: no such file", hint="tea-models lock, or name the models to bundle")
        lock = make_lock(names, caller, names=names)
    else:
        lock = read_lock(lock_path)
    if with_engine and lock.engine is None:
        raise LockError(f"{lock_path} names no engine to go along", hint="tea-models lock --engine")
    unknown = [name for name in names if name not in lock.models]
    if unknown:
        raise UsageError(f"{unknown[0]} is not in {lock_path}", hint=f"it has {', '.join(lock.models) or 'nothing'}")
    models = {name: model for name, model in lock.models.items() if not names or name in names}
    return Lock(models, (), tuple(models), lock.engine if with_engine else None)


def located(store: Store, model: LockedModel) -> Iterator[BundledFile]:
    """The files of a model in the store.

    Raises:
        MissingFileError: One is not there.
        IntegrityError: One is not what it was.
    """
    for file in model.files:
        path = store.path_of(file)
        if path is None:
            for item in store.installed():
                if item.state == "changed" and item.record.means(file):
                    raise store.mismatch(item.record, BROKEN)
            what = f"{model.reference}: {file.filename}"
            raise MissingFileError(f"{what} is not in the store ({store.root})", hint="tea-models sync")
        yield BundledFile(record_of(model, file, path.stat().st_size), path, "bundled")


def _licenses(files: list[BundledFile]) -> str:
    lines = ["The licences of the models in this bundle. Whoever gets the bundle gets them under these.", ""]
    for file in files:
        lines += [
            f"{file.record.model}  {file.record.filename}",
            f"  licence  {file.record.license or 'unknown'}",
            f"  source   {file.record.source}",
        ]
        with contextlib.suppress(TeaModelsError), FileSource(file.path) as source:
            for key, value in read_header(source).metadata.items():
                if key.startswith("general.license") and isinstance(value, str):
                    lines.append(f"  {key}  {' '.join(value.split())}")
        lines.append("")
    return "\n".join(lines)


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def _add_engine(archive: tarfile.TarFile, catalog: Catalog, caller: Caller) -> None:
    with tempfile.TemporaryDirectory(prefix="tea-engine-") as folder:
        wanted = [catalog.binding, *catalog.engines]
        for part, path in zip(wanted, Archives(Path(folder), caller).get(*wanted), strict=True):
            _add(archive, f"engine/{part.sha256}", path, part.sha256, caller.progress)


def _add(archive: tarfile.TarFile, name: str, path: Path, expected: str, progress: Progress) -> None:
    digest = hashlib.sha256()

    class Hashed(io.RawIOBase):
        """The file, hashed as it is read."""

        def read(self, size: int = -1) -> bytes:
            chunk = reader.read(size)
            digest.update(chunk)
            progress.advance(len(chunk))
            return chunk

    with open_regular(path) as reader:
        archive.addfile(_member(name, path.stat().st_size), Hashed())
    if digest.hexdigest() != expected:
        raise ChecksumMismatchError(str(path), expected=expected, actual=digest.hexdigest(), hint=BROKEN)
