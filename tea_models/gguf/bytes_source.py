"""Where the bytes of a header come from: a file (`net/http_source` has the remote one)."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from tea_models.disk.regular import open_regular
from tea_models.errors import AccessDeniedError, MissingFileError, NotAvailableError, SourceUnavailableError

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


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


class FileSource(AbstractContextManager["FileSource"]):
    """A regular file, links followed; read by calls, because a mapping would kill the process if the file shrank."""

    def __init__(self, path: Path | str) -> None:
        self.name = str(path)
        try:
            # Looked at before it is opened: opening some devices has effects.
            mode = Path(path).stat().st_mode
            if not stat.S_ISREG(mode):
                kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
                raise MissingFileError(f"{self.name}: expected a GGUF file, this is {kind}")
            self._file = open_regular(path)
        except (OSError, ValueError) as error:
            raise self._explained(error) from None
        self.size: int | None = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset`, or fewer at the end (or where the file has shrunk)."""
        try:
            self._file.seek(offset)
            return self._file.read(length)
        except OSError as error:
            raise SourceUnavailableError(f"{self.name}: can't be read at byte {offset:,}: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _explained(self, error: OSError | ValueError) -> NotAvailableError:
        if isinstance(error, ValueError):  # a NUL in the path
            return MissingFileError(f"{self.name!r}: not a path")
        if error.errno == errno.ELOOP:
            return MissingFileError(f"{self.name}: the links lead in a circle")
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            dangling = Path(self.name).is_symlink()
            return MissingFileError(f"{self.name}: " + ("the link leads nowhere" if dangling else "no such file"))
        if error.errno in (errno.EACCES, errno.EPERM):
            problem = f"{self.name}: may not be read (permission denied)"
            return AccessDeniedError(problem, hint=f"see: ls -l {self.name}")
        return NotAvailableError(f"{self.name}: can't be opened: {error.strerror}")
