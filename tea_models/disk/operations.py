"""Operations on single files: link, copy, make durable, remove, and what the file system answers as errors of ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tea_models.disk.regular import open_own, open_regular
from tea_models.disk.space import FULL
from tea_models.errors import DiskFullError, StoreError

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# What a file system without hard links, or another device, answers to a link.
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EINVAL)


def link_new(source: Path, target: Path) -> None:
    """Give a file a second name; `FileExistsError` where it is taken (also by a link, which is not followed)."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        # A file system without hard links. Looking first leaves a moment in which another process could take the name,
        # but what it put there, and what replaces that, are verified bytes both.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        source.replace(target)


def clone(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks where the file system can (FICLONE)."""
    with open_regular(source) as reader, open(open_own(target), "r+b") as writer:  # noqa: PTH123 - a descriptor
        writer.truncate()
        try:
            fcntl.ioctl(writer.fileno(), 0x40049409, reader.fileno())  # FICLONE of linux/fs.h
        except OSError:
            shutil.copyfileobj(reader, writer, 1 << 20)


def remove_partial(path: Path) -> None:
    """Remove a partial and what its download kept beside it (same name and a further suffix)."""
    for item in [path, *path.parent.glob(f"{path.name}.*")]:
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in FULL:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what the file system answers to a write into the store's errors."""
    try:
        yield
    except OSError as error:
        told = os.strerror(error.errno or 0).lower()
        if error.errno in FULL:
            hint = "what has arrived is kept: make room (`tea-models gc` shows what can go) and run it again"
            raise DiskFullError(f"{root}: {told}", hint=hint) from None
        if error.errno in _READ_ONLY:
            problem = f"{root}: the store can't be written: {told}"
        elif isinstance(error, NotADirectoryError | FileExistsError):
            problem = f"{error.filename or root}: a file is in the way of the store's folders"
        else:
            raise
        raise StoreError(problem, hint="TEA_MODELS_DIR names another folder") from None
