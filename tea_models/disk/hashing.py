"""SHA-256 of files, as fast as the machine allows."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

from tea_models.disk.regular import open_regular
from tea_models.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tea_models.progress import Progress

_BLOCK: Final = 1 << 20


def sha256_file(path: Path, progress: Progress | None = None) -> str:
    """Hash a file.

    Args:
        path: A regular file.
        progress: Told about every block read; `start` and `finish` are the caller's.

    Returns:
        The digest in lower-case hexadecimal.

    Raises:
        IntegrityError: The file changed while it was read.
        OSError: The file can't be read, or is no plain file.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        hasher = hashlib.sha256()
        hash_range(file.fileno(), 0, before.st_size, hasher, progress)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise IntegrityError(f"{path}: changed while it was read")
    return hasher.hexdigest()


def holds(path: Path, sha256: str) -> bool:
    """Whether a plain file is there, and has these bytes.

    Raises:
        OSError: It is there and can't be read.
    """
    try:
        return sha256_file(path) == sha256
    except IntegrityError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return False
        raise


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


def sha256_files(
    paths: Sequence[Path], progress: Progress | None = None, *, workers: int | None = None
) -> list[str | OSError | IntegrityError]:
    """Hash several files at once, one on each core (hashing and reading leave Python's lock).

    Args:
        paths: Regular files.
        progress: Told about every block read, from one thread at a time.
        workers: Files at once; by default as many as this process may use cores.

    Returns:
        For each path its digest, or the error that kept it from being read.
    """
    shared = _Shared(progress)
    # The biggest first, so that no core is left alone with it at the end.
    order = sorted(range(len(paths)), key=lambda index: -_size(paths[index]))
    pool = ThreadPoolExecutor(max_workers=max(1, min(workers or _cores(), len(paths))))
    try:
        futures = {index: pool.submit(_digest_or_error, paths[index], shared) for index in order}
        while wait(futures.values(), timeout=0.2).not_done:  # short waits: Ctrl-C is heard in between
            pass
    finally:
        shared.stopped = True
        pool.shutdown(wait=True, cancel_futures=True)
    return [futures[index].result() for index in range(len(paths))]


def _cores() -> int:
    """Cores that this process may use (not all systems tell)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Shared:
    """One progress for several threads; it is also how they are told to stop."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self.stopped = False

    def start(self, name: str, total: int | None, initial: int = 0) -> None:
        pass

    def advance(self, n: int) -> None:
        if self.stopped:
            raise InterruptedError
        if self._progress is not None:
            with self._lock:
                self._progress.advance(n)

    def finish(self) -> None:
        pass


def _digest_or_error(path: Path, shared: _Shared) -> str | OSError | IntegrityError:
    try:
        return sha256_file(path, shared)
    except (OSError, IntegrityError) as error:
        return error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
