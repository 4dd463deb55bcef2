"""SHA-256 of files, as fast as the machine allows."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

from tea_models.errors import IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.transfer.progress import Progress

_BLOCK: Final = 1 << 20


def sha256_file(path: Path, progress: Progress | None = None) -> str:
    """Hash a file.

    Args:
        path: A regular file.
        progress: Told about every block read; `start` and `finish` are the caller's.

    Returns:
        The digest in lower-case hexadecimal.

    Raises:
        IntegrityError: The file became shorter while it was read.
        OSError: The file can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        hasher = hashlib.sha256()
        done = hash_range(descriptor, 0, size, hasher, progress)
        if done != size:
            raise IntegrityError(f"{path}: shrank from {size:,} to {done:,} bytes while it was read")
        return hasher.hexdigest()
    finally:
        os.close(descriptor)


def hash_range(descriptor: int, start: int, end: int, hasher: hashlib._Hash, progress: Progress | None = None) -> int:
    """Feed bytes `start` to `end` of an open file to a hasher through one reused buffer.

    Returns:
        The offset reached: `end`, or less where the file ends before.
    """
    buffer = bytearray(min(_BLOCK, max(1, end - start)))
    view = memoryview(buffer)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_SEQUENTIAL)
    while start < end:
        count = os.preadv(descriptor, [view[: min(len(buffer), end - start)]], start)
        if not count:
            break
        hasher.update(view[:count])
        start += count
        if progress is not None:
            progress.advance(count)
    return start
