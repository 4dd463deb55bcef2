"""Operations on single files: hash, link, copy, make durable, and what the file system answers as errors of ours."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from typing import TYPE_CHECKING

from tea_models.disk.hashing import hash_range
from tea_models.errors import DiskFullError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# What a file system without hard links, or another device, answers to a link.
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EINVAL)


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file's bytes. A file that is no regular file has no hash: `("", -1)`."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return "", -1
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return "", -1
        digest = hashlib.sha256()
        done = hash_range(descriptor, 0, found.st_size, digest)
        return digest.hexdigest(), done
    finally:
        os.close(descriptor)


def link_new(source: Path, target: Path) -> None:
    """Give a file a second name that nobody has yet.

    Raises:
        FileExistsError: The name is taken (also by a symbolic link, which is not followed).
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
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
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    with source.open("rb") as reader, open(os.open(target, flags, 0o666), "wb") as writer:  # noqa: PTH123
        try:
            import fcntl

            fcntl.ioctl(writer.fileno(), 0x40049409, reader.fileno())  # FICLONE of linux/fs.h
        except (ImportError, OSError):
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
        if error.errno in _FULL:
            raise
    finally:
        os.close(descriptor)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what can't end.

    Args:
        folder: The store; it may not exist yet.
        needed: Bytes still to be written.
        what: For the message.

    Raises:
        DiskFullError: Less than that is free.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < needed:
        raise DiskFullError(
            f"{what} needs {needed:,} bytes, {free:,} are free at {folder}",
            hint="`tea-models gc` shows what can be removed; TEA_MODELS_DIR puts the store elsewhere",
        )


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what the file system answers to a write into the store's errors."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"{root}: {os.strerror(error.errno or 0).lower()}",
                hint="what has arrived is kept: make room and run the command again",
            ) from None
        if error.errno in _READ_ONLY:
            raise StoreError(
                f"{root}: the store can't be written: {os.strerror(error.errno or 0).lower()}",
                hint="TEA_MODELS_DIR names another folder",
            ) from None
        if isinstance(error, NotADirectoryError | FileExistsError):
            raise StoreError(
                f"{error.filename or root}: a file is in the way of the store's folders",
                hint="TEA_MODELS_DIR names another folder",
            ) from None
        raise
