"""Room on the disk, asked for before bytes are written."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Final

from tea_models.errors import DiskFullError

# What a file system answers to a write for which there is no room.
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def free_bytes(folder: Path) -> int | None:
    """Bytes that can be written in a folder, which may not exist yet; None if the file system does not say."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def taken_by(path: Path) -> int:
    """Bytes of a file that are on the disk: fewer than its size where it has holes, 0 if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return min(found.st_size, getattr(found, "st_blocks", found.st_size) * 512)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what can't end: to write `needed` bytes in a folder, which may not exist yet."""
    free = free_bytes(folder)
    if free is not None and free < needed:
        hint = "`tea-models gc` shows what can be removed; TEA_MODELS_DIR puts the store elsewhere"
        raise DiskFullError(f"{what} needs {needed:,} bytes, {free:,} are free at {folder}", hint=hint)
