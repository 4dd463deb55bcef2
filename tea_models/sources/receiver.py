"""Bytes that come in order, written and hashed at once: what all sources but HTTP do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from tea_models.disk.hashing import hash_range
from tea_models.disk.regular import open_own
from tea_models.files import Fetched
from tea_models.progress import Progress


def receive(
    chunks: Callable[[int], Iterable[bytes]],
    destination: Path,
    *,
    name: str,
    size: int | None = None,
    keep: int = 0,
    progress: Progress | None = None,
) -> Fetched:
    """Write what `chunks` gives (after `keep` bytes that are there) into a file, never a link, and hash it all."""
    progress = progress or Progress()
    digest, there = hashlib.sha256(), 0
    with open(open_own(destination), "r+b") as writer:  # noqa: PTH123 - a descriptor
        if 0 < keep <= os.fstat(writer.fileno()).st_size:
            there = hash_range(writer.fileno(), 0, keep, digest)
        writer.seek(there)
        writer.truncate()
        done = there
        with progress.task(name, size, there):
            for chunk in chunks(there):
                digest.update(chunk)
                writer.write(chunk)
                writer.flush()
                done += len(chunk)
                progress.advance(len(chunk))
    return Fetched(digest.hexdigest(), done, there or None)


def blocks(reader: IO[bytes]) -> Iterator[bytes]:
    """The rest of an open file, piece by piece."""
    while chunk := reader.read(1 << 20):
        yield chunk
