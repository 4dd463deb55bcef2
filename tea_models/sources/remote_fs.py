"""Any other address that an installed `fsspec` filesystem can open: `s3://`, `gs://`, `az://`, `sftp://`, `memory://`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from tea_models.disk.regular import open_own
from tea_models.errors import (
    AccessDeniedError,
    MissingFileError,
    OfflineError,
    SizeMismatchError,
    SourceUnavailableError,
    UsageError,
)
from tea_models.files import Artifact, ModelFile, Source, base_name
from tea_models.sources import Fetched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tea_models.caller import Caller
    from tea_models.gguf.bytes_source import ByteSource
    from tea_models.refs import FsspecRef


def resolve(reference: FsspecRef, caller: Caller) -> Artifact:
    """The file behind the address, with its size.

    Raises:
        UsageError: No filesystem of that name, or the address ends in no file name.
        SourceUnavailableError: The package for it is not installed, or it can't be reached.
        MissingFileError: There is no such file.
    """
    if caller.settings.offline:
        raise OfflineError(f"{reference} is not in the store, and nothing may be fetched (--offline)")
    name = base_name(urlsplit(reference.url).path or urlsplit(reference.url).netloc)
    if not name or name.endswith("/"):
        raise UsageError(f"{reference.url}: the address ends in no file name")
    filesystem, path = _open_filesystem(reference)
    size = _size(reference, filesystem, path)
    return Artifact(str(reference), str(reference), None, (ModelFile(name, size, None, (Source((reference,)),)),))


def fetch(reference: FsspecRef, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Copy the bytes, hashing them on the way. A pinned file is continued where an earlier attempt stopped."""
    filesystem, path = _open_filesystem(reference)
    size = _size(reference, filesystem, path)
    if file.size is not None and size is not None and size != file.size:
        raise SizeMismatchError(file.filename, expected=file.size, actual=size)
    digest, there = hashlib.sha256(), 0
    with open(open_own(destination), "r+b") as writer:  # noqa: PTH123 - a descriptor
        if file.sha256 is not None:
            while chunk := writer.read(1 << 20):
                digest.update(chunk)
                there += len(chunk)
        if size is None or there > size:
            digest, there = hashlib.sha256(), 0
        writer.seek(there)
        writer.truncate()
        caller.progress.start(file.filename, size, there)
        done = there
        try:
            for chunk in _chunks(reference, filesystem, path, there):
                digest.update(chunk)
                writer.write(chunk)
                done += len(chunk)
                caller.progress.advance(len(chunk))
        finally:
            caller.progress.finish()
    return Fetched(digest.hexdigest(), done, there or None)


def open_remote(reference: FsspecRef, caller: Caller) -> ByteSource:  # noqa: ARG001
    """Read parts of the file."""
    return _FsspecSource(reference)


class _FsspecSource:
    """A `ByteSource` over an fsspec file."""

    def __init__(self, reference: FsspecRef) -> None:
        self.name = reference.url
        self._reference = reference
        filesystem, path = _open_filesystem(reference)
        self.size = _size(reference, filesystem, path)
        try:
            self._file: Any = filesystem.open(path, "rb")
        except Exception as error:  # noqa: BLE001 - each filesystem has exceptions of its own
            _explain(reference, error)

    def read(self, offset: int, length: int) -> bytes:
        try:
            self._file.seek(offset)
            data = b""
            while len(data) < length and (more := self._file.read(length - len(data))):
                data += more
        except Exception as error:  # noqa: BLE001 - each filesystem has exceptions of its own
            _explain(self._reference, error)
        return data

    def close(self) -> None:
        self._file.close()


def _chunks(reference: FsspecRef, filesystem: Any, path: str, start: int) -> Iterator[bytes]:
    try:
        with filesystem.open(path, "rb") as reader:
            reader.seek(start)
            while chunk := reader.read(1 << 20):
                yield chunk
    except Exception as error:  # noqa: BLE001 - each filesystem has exceptions of its own
        _explain(reference, error)


def _open_filesystem(reference: FsspecRef) -> tuple[Any, str]:
    import fsspec

    protocol = reference.url.partition("://")[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(reference.url)
    except ImportError as error:
        raise SourceUnavailableError(
            f"{reference}: {protocol}:// needs a package that is not installed: {error}",
            hint=f"pip install {_PACKAGES.get(protocol, f'the fsspec package for {protocol}')}",
        ) from None
    except ValueError as error:
        raise UsageError(f"{reference}: no filesystem opens {protocol}:// ({error})") from None
    except Exception as error:  # noqa: BLE001 - each filesystem has exceptions of its own
        _explain(reference, error)
    return filesystem, str(path)


_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "oss": "ossfs",
}


def _size(reference: FsspecRef, filesystem: Any, path: str) -> int | None:
    try:
        info = filesystem.info(path)
    except Exception as error:  # noqa: BLE001 - each filesystem has exceptions of its own
        _explain(reference, error)
    if info.get("type") == "directory":
        raise MissingFileError(f"{reference}: not a file but a folder")
    size = info.get("size")
    return size if isinstance(size, int) else None


def _explain(reference: FsspecRef, error: Exception) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        raise MissingFileError(f"{reference}: no such file") from None
    if isinstance(error, PermissionError):
        raise AccessDeniedError(f"{reference}: access denied", hint="check the credentials for it") from None
    raise SourceUnavailableError(f"{reference}: can't be read ({type(error).__name__})") from error
