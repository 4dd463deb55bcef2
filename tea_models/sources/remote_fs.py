"""Any other address that an installed `fsspec` filesystem can open: `s3://`, `gs://`, `az://`, `sftp://`, `memory://`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tea_models.caller import Caller
from tea_models.errors import (
    AccessDeniedError,
    MissingFileError,
    SizeMismatchError,
    SourceUnavailableError,
    TeaModelsError,
    UsageError,
)
from tea_models.files import Artifact, Fetched, ModelFile, Source, base_name, public
from tea_models.gguf.bytes_source import ByteSource
from tea_models.refs import FsspecRef
from tea_models.sources.http import refuse_offline
from tea_models.sources.receiver import blocks, receive


def resolve(reference: FsspecRef, caller: Caller) -> Artifact:
    refuse_offline(reference, caller.settings)
    name = base_name(urlsplit(reference.url).path or urlsplit(reference.url).netloc)
    if not name or name.endswith("/"):
        raise UsageError(f"{reference.url}: the address ends in no file name")
    filesystem, path = open_filesystem(reference)
    size = _size(reference, filesystem, path)
    return Artifact(str(reference), str(reference), None, (ModelFile(name, size, None, (Source((reference,)),)),))


def fetch(reference: FsspecRef, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Copy the bytes, hashing them on the way. A pinned file is continued where an earlier attempt stopped."""
    filesystem, path = open_filesystem(reference)
    size = _size(reference, filesystem, path)
    if file.size is not None and size is not None and size != file.size:
        raise SizeMismatchError(file.filename, expected=file.size, actual=size)
    there = destination.stat().st_size if file.sha256 is not None and destination.is_file() else 0

    def chunks(start: int) -> Iterator[bytes]:
        with explained(reference), filesystem.open(path, "rb") as reader:
            reader.seek(start)
            yield from blocks(reader)

    return receive(
        chunks,
        destination,
        name=file.filename,
        size=size,
        keep=there if size is not None and there <= size else 0,
        progress=caller.progress,
    )


def open_remote(reference: FsspecRef, caller: Caller) -> ByteSource:  # noqa: ARG001
    return _FsspecSource(reference)


class _FsspecSource:
    def __init__(self, reference: FsspecRef) -> None:
        self.name = public(reference)
        self._reference = reference
        filesystem, path = open_filesystem(reference)
        self.size = _size(reference, filesystem, path)
        with explained(reference):
            self._file: Any = filesystem.open(path, "rb")

    def read(self, offset: int, length: int) -> bytes:
        with explained(self._reference):
            self._file.seek(offset)
            return bytes(self._file.read(length))

    def close(self) -> None:
        self._file.close()


def open_filesystem(reference: FsspecRef) -> tuple[Any, str]:
    import fsspec

    with explained(reference):
        try:
            filesystem, path = fsspec.core.url_to_fs(reference.url)
        except ImportError as error:
            raise SourceUnavailableError(
                f"{reference}: this kind of address needs a package that is not installed", hint=str(error)
            ) from None
        except ValueError as error:
            raise UsageError(f"{reference}: no filesystem opens this kind of address ({error})") from None
    return filesystem, str(path)


def _size(reference: FsspecRef, filesystem: Any, path: str) -> int | None:
    with explained(reference):
        info = filesystem.info(path)
    if info.get("type") == "directory":
        raise MissingFileError(f"{reference}: not a file but a folder")
    size = info.get("size")
    return size if isinstance(size, int) else None


@contextmanager
def explained(reference: FsspecRef, done: str = "read") -> Iterator[None]:
    """Each filesystem has exceptions of its own."""
    try:
        yield
    except TeaModelsError:
        raise
    except FileNotFoundError as error:
        told = "no such file" if done == "read" else f"can't be {done}: {error}"
        raise MissingFileError(f"{reference}: {told}") from None
    except PermissionError:
        raise AccessDeniedError(f"{reference}: access denied", hint="check the credentials for it") from None
    except Exception as error:  # noqa: BLE001
        told = type(error).__name__ + ("" if done == "read" else f": {error}")
        raise SourceUnavailableError(f"{reference}: can't be {done} ({told})") from None
