"""One process at a time, where the file system can tell; and an honest answer where it can't.

`flock` silently does nothing on some network file systems. `hold` tries out whether the lock it took would keep
another process away, and says so; its caller then works in a way that needs no lock (see `Store.partial`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tea_models.disk.regular import descriptor_of, open_own

_CONTENDED = (errno.EAGAIN, errno.EACCES)
# A lock belongs to the open file, which a forked child shares: it would hold what its parent has given back.
_held: set[int] = set()


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def hold(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold an exclusive lock; yields whether it keeps others out. `waiting` is called once if another process has it.

    The lock file is made if it is absent, and left in place: removing it would split those who wait.
    """
    while True:
        descriptor = _open(path)
        _held.add(descriptor)
        try:
            locked = _lock(descriptor, waiting)
            # Whoever cleans up may have removed the file between open and lock: then this lock guards no name.
            if locked and os.fstat(descriptor).st_nlink == 0:
                continue
            yield locked and not try_hold(path)  # a lock that works refuses another open file
            return
        finally:
            if descriptor in _held:  # not in a child that was forked meanwhile
                _held.discard(descriptor)
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child that has not let go yet
                os.close(descriptor)


def try_hold(path: Path) -> bool:
    """Whether nobody holds the lock at `path` now. True also where locks do nothing, or there is no such file."""
    try:
        descriptor = descriptor_of(path, follow=False)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _CONTENDED
    finally:
        os.close(descriptor)
    return True


def _open(path: Path) -> int:
    try:
        return open_own(path)
    except PermissionError:
        if not path.exists():
            raise
        # In a store that several users share, the file may be another's. A lock needs no right to write.
        return descriptor_of(path, follow=False)


def _lock(descriptor: int, waiting: Callable[[], None] | None) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _CONTENDED:
            return False
        if waiting is not None:
            waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return True
