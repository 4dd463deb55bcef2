"""Where the bytes of a header come from: a file or bytes in memory (`http_source` has the remote one)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from tea_models.errors import AccessDeniedError, MissingFileError, NotAvailableError, SourceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

# O_NONBLOCK: opening a FIFO must not wait for a writer if one took the file's place after it was looked at.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class ByteSource(Protocol):
    """Random access to the bytes of a file that need not be on this machine."""

    @property
    def name(self) -> str:
        """What the file is called in messages."""

    @property
    def size(self) -> int | None:
        """Size in bytes, or None where the source does not say."""

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset`, or fewer where the source ends."""

    def close(self) -> None:
        """Give back what is held open."""


class BytesSource:
    """Bytes in memory.

    Args:
        data: All bytes of the file.
        name: What the file is called in messages.
    """

    def __init__(self, data: bytes, name: str = "bytes") -> None:
        self.name = name
        self.size: int | None = len(data)
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset`, or fewer at the end."""
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Nothing is held open."""


class FileSource:
    """A regular file, read with `pread`: a mapping would kill the process if the file shrank under it.

    Args:
        path: The file; links are followed.

    Raises:
        MissingFileError: There is no such file, or the path is not a regular file.
        AccessDeniedError: It may not be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.name = str(path)
        self._descriptor = -1
        try:
            # Looked at before it is opened: opening some devices has effects, and a FIFO would block.
            self._refuse_irregular(Path(path).stat().st_mode)
            self._descriptor = os.open(path, _OPEN_FLAGS)
            status = os.fstat(self._descriptor)
        except (OSError, ValueError) as error:
            self.close()
            raise self._explained(error) from None
        self.status = status
        self.size: int | None = status.st_size
        try:
            self._refuse_irregular(status.st_mode)
        except MissingFileError:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset`, or fewer at the end (or where the file has shrunk)."""
        try:
            data = os.pread(self._descriptor, length, offset)
            while len(data) < length:
                more = os.pread(self._descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise SourceUnavailableError(f"{self.name}: can't be read at byte {offset:,}: {error.strerror}") from None
        return data

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_irregular(self, mode: int) -> None:
        if stat.S_ISREG(mode):
            return
        kind = next((kind for test, kind in _KINDS if test(mode)), "not a regular file")
        raise MissingFileError(f"{self.name}: expected a GGUF file, this is {kind}")

    def _explained(self, error: OSError | ValueError) -> NotAvailableError:
        if isinstance(error, ValueError):  # a NUL in the path
            return MissingFileError(f"{self.name!r}: not a path")
        if error.errno == errno.ELOOP:
            return MissingFileError(f"{self.name}: the links lead in a circle")
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            dangling = Path(self.name).is_symlink()
            return MissingFileError(f"{self.name}: " + ("the link leads nowhere" if dangling else "no such file"))
        if error.errno in (errno.EACCES, errno.EPERM):
            return AccessDeniedError(
                f"{self.name}: may not be read (permission denied)", hint=f"see: ls -l {self.name}"
            )
        return NotAvailableError(f"{self.name}: can't be opened: {error.strerror}")
