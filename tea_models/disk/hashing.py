"""SHA-256 of files, as fast as the machine allows."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tea_models.disk.regular import open_regular
from tea_models.disk.space import taken_by
from tea_models.errors import IntegrityError

_BLOCK: Final = 1 << 20


def sha256_text(text: str) -> str:
    """The digest of a text as UTF-8; of one that is broken too."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """The digest of a plain file (else an `OSError`); an `IntegrityError` where it changed while it was read."""
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        hasher = hashlib.sha256()
        hash_range(file.fileno(), 0, before.st_size, hasher, advance)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise IntegrityError(f"{path}: changed while it was read")
    return hasher.hexdigest()


def holds(path: Path, sha256: str) -> bool:
    """Whether a plain file is there, and has these bytes; `OSError` where it is there and can't be read."""
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
    """Feed bytes `start` to `end` of an open file to a hasher; returns the offset reached, less where the file ends."""
    view = memoryview(bytearray(min(_BLOCK, max(1, end - start))))
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_SEQUENTIAL)
    while start < end:
        count = os.preadv(descriptor, [view[: end - start]], start)
        if not count:
            break
        hasher.update(view[:count])
        start += count
        if advance is not None:
            advance(count)
    return start


def sha256_files(
    paths: Sequence[Path], advance: Callable[[int], None] | None = None
) -> list[str | OSError | IntegrityError]:
    """Hash files at once, one a core: each one's digest, or why it has none; one thread at a time calls `advance`."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and seldom needed

    lock, stopped = threading.Lock(), threading.Event()

    def told(count: int) -> None:
        if stopped.is_set():
            raise InterruptedError
        if advance is not None:
            with lock:
                advance(count)

    def digest(path: Path) -> str | OSError | IntegrityError:
        try:
            return sha256_file(path, told)
        except (OSError, IntegrityError) as error:
            return error

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(max_workers=max(1, min(cores, len(paths))))
    try:
        # The biggest first, so that no core is left alone with it at the end.
        futures = {path: pool.submit(digest, path) for path in sorted(paths, key=taken_by, reverse=True)}
        return [futures[path].result() for path in paths]
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
