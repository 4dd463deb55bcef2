"""SHA-256 of files, as fast as the machine allows."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from typing import TYPE_CHECKING, Final

from tea_models.disk.positional import read_into
from tea_models.disk.regular import open_regular
from tea_models.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


_BLOCK: Final = 1 << 20


def sha256_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Hash a file.

    Args:
        path: A regular file.
        advance: Told how many bytes were read, block by block.

    Returns:
        The digest in lower-case hexadecimal.

    Raises:
        IntegrityError: The file changed while it was read.
        OSError: The file can't be read, or is no plain file.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        hasher = hashlib.sha256()
        hash_range(file.fileno(), 0, before.st_size, hasher, advance)
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


def hash_range(
    descriptor: int, start: int, end: int, hasher: hashlib._Hash, advance: Callable[[int], None] | None = None
) -> int:
    """Feed bytes `start` to `end` of an open file to a hasher through one reused buffer.

    Returns:
        The offset reached: `end`, or less where the file ends before.
    """
    buffer = bytearray(min(_BLOCK, max(1, end - start)))
    view = memoryview(buffer)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_SEQUENTIAL)
    while start < end:
        count = read_into(descriptor, view[: min(len(buffer), end - start)], start)
        if not count:
            break
        hasher.update(view[:count])
        start += count
        if advance is not None:
            advance(count)
    return start


def sha256_files(
    paths: Sequence[Path], advance: Callable[[int], None] | None = None, *, workers: int | None = None
) -> list[str | OSError | IntegrityError]:
    """Hash several files at once, one on each core (hashing and reading leave Python's lock).

    Args:
        paths: Regular files.
        advance: As for `sha256_file`; called from one thread at a time.
        workers: Files at once; by default as many as this process may use cores.

    Returns:
        For each path its digest, or the error that kept it from being read.
    """
    from concurrent.futures import ThreadPoolExecutor, wait  # slow to import, and seldom needed

    lock, stopped = threading.Lock(), threading.Event()

    def told(count: int) -> None:
        if stopped.is_set():
            raise InterruptedError
        if advance is not None:
            with lock:
                advance(count)

    # The biggest first, so that no core is left alone with it at the end.
    order = sorted(range(len(paths)), key=lambda index: -_size(paths[index]))
    pool = ThreadPoolExecutor(max_workers=max(1, min(workers or _cores(), len(paths))))
    try:
        futures = {index: pool.submit(_digest_or_error, paths[index], told) for index in order}
        while wait(futures.values(), timeout=0.2).not_done:  # short waits: Ctrl-C is heard in between
            pass
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return [futures[index].result() for index in range(len(paths))]


def _cores() -> int:
    """Cores that this process may use (not all systems tell)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _digest_or_error(path: Path, advance: Callable[[int], None]) -> str | OSError | IntegrityError:
    try:
        return sha256_file(path, advance)
    except (OSError, IntegrityError) as error:
        return error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
