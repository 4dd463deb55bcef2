"""Writing a file so that its name means the old bytes or the new ones, never half of either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tea_models.disk.space import FULL
from tea_models.errors import DiskFullError, StoreError


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Write beside a name (a link is replaced, not followed), and take it when all is well; `durable`: on the disk."""
    draft = path.with_name(f".{path.name[:40]}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with draft.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Give a file a new text; arguments as for `replacing`."""
    with replacing(path, durable=durable) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing_document(path: Path) -> Iterator[BinaryIO]:
    """Replace a file that a person named: behind a link, with the permissions that it had; `StoreError` on trouble."""
    try:
        if path.exists() and not path.is_file():
            raise StoreError(f"{path}: not a file; expected a name that can be written")
        target = path.resolve() if path.is_symlink() else path
        with replacing(target) as file:
            yield file
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(f"{path}: no space left on the disk") from None
        raise StoreError(f"{path}: can't be written: {(error.strerror or str(error)).lower()}") from None


def write_document(path: Path, text: str) -> None:
    """Replace the text of a file that a person named; errors as for `replacing_document`."""
    with replacing_document(path) as file:
        file.write(text.encode())
