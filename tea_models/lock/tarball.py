"""Tar files that hold nothing but plain files under plain names, written and read strictly.

`tarfile` understands links, devices, sparse files and headers of any length; a file from a stranger is read here by
something that understands none of that. The format is the oldest common one (ustar, with GNU's sizes over 8 GiB), so
every `tar` can list and unpack what is written.
"""

from __future__ import annotations

import re
import tarfile
from typing import TYPE_CHECKING, BinaryIO, Final

from tea_models.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK: Final = 512
# One folder deep, letters, digits, `.`, `_` and `-`: nothing that could leave a folder or mean something to a shell.
_NAME: Final = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,60}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,80}\Z")
_MAX_SIZE: Final = 1 << 50


def header(name: str, size: int) -> bytes:
    """The header block of a file."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """What fills the last block of a file."""
    return b"\0" * (-size % BLOCK)


END: Final = b"\0" * (20 * BLOCK)


class Reader:
    """Goes through a tar file from its beginning to its end.

    Args:
        file: Open for reading.
        name: For messages.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._left = 0  # bytes of the current member that were not read
        self._pad = 0

    def members(self) -> Iterator[tuple[str, int]]:
        """Name and size of each member; `chunks` reads its bytes.

        Raises:
            IntegrityError: It is cut, damaged, or has something else in it than plain files.
        """
        while True:
            for _ in self.chunks():
                pass
            self._exactly(self._pad)
            block = self._exactly(BLOCK)
            if block == b"\0" * BLOCK:
                return
            name, size = self._parse(block)
            self._left, self._pad = size, -size % BLOCK
            yield name, size

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the current member."""
        while self._left:
            chunk = self._file.read(min(self._left, 1 << 20))
            if not chunk:
                raise self._broken("it is cut off")
            self._left -= len(chunk)
            yield chunk

    def _exactly(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise self._broken("it is cut off")
        return data

    def _parse(self, block: bytes) -> tuple[str, int]:
        total = sum(block[:148]) + 8 * 0x20 + sum(block[156:])
        if self._number(block[148:156]) != total:
            raise self._broken("it is no tar file, or it is damaged (a header's checksum is wrong)")
        name = block[:100].rstrip(b"\0").decode("latin-1")
        if block[156:157] not in (b"0", b"\0") or block[345:500].strip(b"\0"):
            raise self._broken(f"{name[:60]!r} is no plain file, and a bundle has nothing else")
        size = self._number(block[124:136])
        if not _NAME.match(name) or not 0 <= size < _MAX_SIZE:
            raise self._broken(f"a member has the name {name[:60]!r} and {size:,} bytes, which no bundle has")
        return name, size

    def _number(self, field: bytes) -> int:
        if field[0] == 0x80:  # GNU's base 256
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b" \0")
        if not digits or any(digit not in b"01234567" for digit in digits):
            return -1
        return int(digits, 8)

    def _broken(self, problem: str) -> IntegrityError:
        return IntegrityError(f"{self._name}: {problem}", hint="copy the bundle again, or make it again")
