"""The partial file on disk, and beside it a small one that remembers what is in it.

The bytes are written before the state claims them, so a process killed at any moment leaves a state that is true. What
a power cut may break is found by the hash of the beginning (`checked`) or at last by that of the whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tea_models.disk.atomic import write_atomically
from tea_models.disk.regular import open_own, read_own
from tea_models.disk.space import FULL, free_bytes
from tea_models.errors import DiskFullError
from tea_models.net.ranges import ENDLESS, Ranges

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCHEMA: Final = "tea.partial/1"
_SUFFIX: Final = ".state"
_MAX_STATE: Final = 1 << 20
_MAX_BUFFERS: Final = 512  # of the 1,024 that one writev takes (IOV_MAX)
_UNKNOWN_RESERVE: Final = 256 << 20  # left free by a file whose size nobody says


@dataclass(frozen=True, slots=True)
class State:
    """What is known about a partial.

    Attributes:
        source: Fingerprint of the address (the address itself may carry a secret).
        sha256: The pin it was begun with, or None.
        total: The file's size, if known.
        etag: The server's entity tag, or "".
        last_modified: The server's date, or "".
        ranges: Which bytes are there.
        checked: How many bytes at the beginning were hashed, and their SHA-256.
    """

    source: str
    sha256: str | None
    total: int | None
    etag: str
    last_modified: str
    ranges: tuple[tuple[int, int], ...]
    checked: tuple[int, str]


def state_path(partial: Path) -> Path:
    """The file beside a partial that remembers how far it is."""
    return partial.with_name(partial.name + _SUFFIX)


def discard(partial: Path) -> None:
    """Remove a partial and its state, if they are there."""
    partial.unlink(missing_ok=True)
    state_path(partial).unlink(missing_ok=True)


def fingerprint(url: str) -> str:
    """Tells addresses apart without revealing them."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class PartialFile:
    """An open partial; closed when the last of its users has left.

    Args:
        path: Where it lies; its folder exists.

    Raises:
        OSError: It can't be opened for writing.
        StoreError: Something that is no file is in the way.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_own(path)
        self._users = 1
        self._lock = threading.Lock()

    @property
    def descriptor(self) -> int:
        return self._descriptor

    def enter(self) -> None:
        """Count one more user."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Count one user less."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                os.close(self._descriptor)

    def allocated(self) -> int:
        """Bytes that it takes on the disk."""
        return os.fstat(self._descriptor).st_blocks * 512

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def write(self, buffers: Sequence[bytes | memoryview], position: int) -> None:
        """Write buffers, one after the other, at a position.

        Raises:
            DiskFullError: No space is left.
        """
        for first in range(0, len(buffers), _MAX_BUFFERS):
            position = self._write_some(buffers[first : first + _MAX_BUFFERS], position)

    def _write_some(self, buffers: Sequence[bytes | memoryview], position: int) -> int:
        rest = list(buffers)
        while rest:
            try:
                written = os.pwritev(self._descriptor, rest, position)
            except OSError as error:
                if error.errno in FULL:
                    raise disk_full(self.path) from None
                raise
            position += written
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if written:
                rest[0] = memoryview(rest[0])[written:]
        return position

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def load(self) -> State | None:
        """The state beside the partial, clipped to the bytes that are really there; None if it can't be used."""
        state = _read_state(state_path(self.path))
        if state is None:
            return None
        ranges = tuple(Ranges(state.ranges).clipped(self.size()))
        length = state.checked[0]
        checked = state.checked if ranges and ranges[0][0] == 0 and ranges[0][1] >= length else (0, "")
        return State(state.source, state.sha256, state.total, state.etag, state.last_modified, ranges, checked)

    def save(self, state: State) -> None:
        """Write the state atomically.

        Raises:
            DiskFullError: No space is left.
        """
        target = state_path(self.path)
        document = {"schema": SCHEMA} | {name: getattr(state, name) for name in State.__slots__}
        try:
            write_atomically(target, json.dumps(document), durable=False)
        except OSError as error:
            if error.errno in FULL:
                raise disk_full(self.path) from None
            raise

    def forget(self) -> None:
        """Throw everything away and begin anew with an empty file."""
        state_path(self.path).unlink(missing_ok=True)
        self.truncate(0)


class Beginning:
    """What has arrived of a file, as a byte source that does not say how big the file will be.

    Args:
        partial: The file.
        end: How many bytes at its beginning are there.
    """

    size: int | None = None

    def __init__(self, partial: PartialFile, end: int) -> None:
        self.name = str(partial.path)
        self._partial, self._end = partial, end

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset`, or fewer at the end."""
        return os.pread(self._partial.descriptor, max(0, min(length, self._end - offset)), offset)

    def close(self) -> None:
        """The partial stays open."""


def room(partial: PartialFile) -> int:
    """How big a file may become whose size nobody says: not so big that the disk is full."""
    free = free_bytes(partial.path.parent)
    return ENDLESS if free is None else max(0, partial.allocated() + free - _UNKNOWN_RESERVE)


def disk_full(path: Path) -> DiskFullError:
    """The error for a disk without space."""
    return DiskFullError(
        f"{path.parent}: no space left on the disk",
        hint="what has arrived is kept: make room and run the command again (`tea-models gc` shows what can go)",
    )


def _read_state(path: Path) -> State | None:
    try:
        data: Any = json.loads(read_own(path, _MAX_STATE) or b"")
        ranges = tuple((_count(start), _count(end)) for start, end in data["ranges"])
        length, digest = data["checked"]
        state = State(
            source=str(data["source"]),
            sha256=None if data["sha256"] is None else str(data["sha256"]),
            total=None if data["total"] is None else _count(data["total"]),
            etag=str(data["etag"]),
            last_modified=str(data["last_modified"]),
            ranges=ranges,
            checked=(_count(length), str(digest)),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    ordered = all(start < end for start, end in ranges)
    return state if data.get("schema") == SCHEMA and ordered else None


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 60:
        raise ValueError(value)
    return value
