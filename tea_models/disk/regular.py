"""Opening files that must be plain files: no link, FIFO, device or second name of another file is opened unawares."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from tea_models.errors import StoreError

_SAFE = os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: opening a FIFO must not wait for its other end


def open_own(path: Path) -> int:
    """Open a file of our own for reading and writing, made if it is absent; what was planted under its name goes."""
    for _ in range(3):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | _SAFE, 0o666)
        except OSError as error:
            if error.errno == errno.EISDIR or path.is_dir():
                raise StoreError(f"{path}: a folder is in the way of a download", hint="move it away") from None
            if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
                raise
        else:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                return descriptor
            os.close(descriptor)
        path.unlink(missing_ok=True)  # its name is ours, its content is not
    raise StoreError(f"{path}: something keeps putting a link where a download is to be written")


def descriptor_of(path: Path | str, *, follow: bool = True) -> int:
    """Open a plain file for reading; with `follow` a link to one will do. `OSError`: EINVAL if it is something else."""
    descriptor = os.open(path, os.O_RDONLY | _SAFE | (0 if follow else os.O_NOFOLLOW))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return descriptor


def open_regular(path: Path | str, *, follow: bool = True) -> BinaryIO:
    """As `descriptor_of`, as a Python file."""
    return open(descriptor_of(path, follow=follow), "rb")


def read_own(path: Path | str, limit: int = 16 << 20) -> bytes | None:
    """The bytes of a small file of our own; None where there is none, or what is there was not written by us."""
    try:
        with open_regular(path, follow=False) as file:
            data = file.read(limit + 1)
    except (OSError, ValueError):
        return None
    return data if len(data) <= limit else None
