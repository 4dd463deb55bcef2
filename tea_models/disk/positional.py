"""Reading a file at an offset, also on systems without a call for it (Windows)."""

from __future__ import annotations

import os
import threading

_moving = threading.Lock()  # whoever moves the position of a descriptor reads before another moves it


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Read up to `length` bytes at `offset`; fewer at the end.

    Raises:
        OSError: It can't be read.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    with _moving:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


def read_into(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill a buffer from `offset` on, and say how many bytes there were; raises as `read_at` does."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    data = read_at(descriptor, len(view), offset)
    view[: len(data)] = data
    return len(data)
