"""The partial file on disk, and beside it a small one that remembers what is in it.

The bytes are written before the state claims them, so a process killed at any moment leaves a state that is true. What
a power cut may break is found by the hash of the beginning (`checked`) or at last by that of the whole.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from tea_models.disk.atomic import write_atomically
from tea_models.disk.hashing import sha256_text
from tea_models.disk.operations import writing
from tea_models.disk.regular import open_own, read_own
from tea_models.disk.space import free_bytes, taken_by
from tea_models.net.ranges import ENDLESS, Ranges

_MAX_STATE: Final = 1 << 20
_UNKNOWN_RESERVE: Final = 256 << 20  # left free by a file whose size nobody says


@dataclass(frozen=True, slots=True)
class State:
    source: str  # fingerprint of the address (which itself may carry a secret)
    sha256: str | None  # the pin it was begun with
    total: int | None
    etag: str
    last_modified: str
    ranges: tuple[tuple[int, int], ...]  # which bytes are there
    checked: tuple[int, str]  # how many bytes at the beginning were hashed, and their SHA-256
    schema: Literal["tea.partial/1"] = "tea.partial/1"


def fingerprint(url: str) -> str:
    """Tells addresses apart without revealing them."""
    return sha256_text(url)[:32]


class PartialFile:
    """An open partial, in a folder that exists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_path = path.with_name(f"{path.name}.state")  # remembers how far it is
        self.descriptor = open_own(path)
        self._room = ENDLESS

    def close(self) -> None:
        """Close it; a thread that could not be ended in time finds no descriptor."""
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def limit_to_disk(self) -> None:
        """Nobody says how big it will be: it must not become so big that the disk is full."""
        free = free_bytes(self.path.parent)
        self._room = ENDLESS if free is None else max(0, taken_by(self.path) + free - _UNKNOWN_RESERVE)

    def write(self, data: bytes, position: int) -> None:
        """Write at a position; `DiskFullError` where no space is left."""
        with writing(self.path.parent):
            if position + len(data) > self._room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            while data:
                written = os.pwrite(self.descriptor, data, position)
                position, data = position + written, data[written:]

    def truncate(self, size: int) -> None:
        os.ftruncate(self.descriptor, size)

    def load(self) -> State | None:
        """The state beside the partial, clipped to the bytes that are really there; None if it can't be used."""
        kept = read_own(self.state_path, _MAX_STATE)
        if not kept:
            return None
        from pydantic import TypeAdapter

        try:
            state = TypeAdapter(State).validate_json(kept, strict=True)
        except ValueError:
            return None
        numbers = [state.checked[0], state.total or 0, *itertools.chain(*state.ranges)]
        if not all(0 <= number < 1 << 60 for number in numbers):
            return None
        ranges = tuple(Ranges(state.ranges).clipped(self.size()))
        hashed = ranges and ranges[0][0] == 0 and ranges[0][1] >= state.checked[0]
        return replace(state, ranges=ranges, checked=state.checked if hashed else (0, ""))

    def save(self, state: State) -> None:
        with writing(self.path.parent):
            write_atomically(self.state_path, json.dumps(asdict(state)), durable=False)

    def forget(self) -> None:
        """Throw everything away and begin anew with an empty file."""
        self.state_path.unlink(missing_ok=True)
        self.truncate(0)


class Beginning:
    """The first `end` bytes of a file that is on its way, as a byte source that does not know how big it will be."""

    size: int | None = None

    def __init__(self, partial: PartialFile, end: int) -> None:
        self.name = str(partial.path)
        self._partial, self._end = partial, end

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._partial.descriptor, max(0, min(length, self._end - offset)), offset)

    def close(self) -> None:
        """The partial stays open."""
