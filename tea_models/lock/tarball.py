"""Tar files that hold nothing but plain files under plain names, read strictly.

`tarfile` understands links, devices, sparse files and headers of any length; a file from a stranger is read here by
something that understands none of that.
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


class Reader:
    """Goes through a tar file from its beginning to its end; `name` is for messages."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._left = 0  # bytes of the current member that were not read

    def members(self) -> Iterator[tuple[str, int]]:
        """Name and size of each member; an `IntegrityError` where it is cut, damaged, or no plain file."""
        while any(block := self._exactly(BLOCK)):
            name, self._left = self._parse(block)
            size = self._left
            yield name, size
            for _ in self.chunks():
                pass  # what nobody wanted
            self._exactly(-size % BLOCK)

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
        try:
            info = tarfile.TarInfo.frombuf(block, "latin-1", "strict")
        except tarfile.HeaderError as error:
            raise self._broken(f"it is no tar file, or it is damaged ({error})") from None
        if not info.isreg() or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise self._broken(f"{info.name[:60]!r} is no plain file, and a bundle has nothing else")
        if not _NAME.match(info.name) or not 0 <= info.size < _MAX_SIZE:
            raise self._broken(f"a member has the name {info.name[:60]!r} and {info.size:,} bytes, which no bundle has")
        return info.name, info.size

    def _broken(self, problem: str) -> IntegrityError:
        return IntegrityError(f"{self._name}: {problem}", hint="copy the bundle again, or make it again")
