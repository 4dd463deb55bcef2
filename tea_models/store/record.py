"""What is known about one file of the store, and its form on disk."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tea_models.disk.regular import read_own
from tea_models.files import ModelFile, Source

HIDDEN = ".tea"
RECORD_SCHEMA = "tea.store-record/1"


@dataclass(frozen=True, slots=True)
class Record:
    file: str  # its path in the store, with `/`
    size: int
    sha256: str  # of the bytes when they were last verified
    model: str  # the name or reference it was pulled as
    source: str  # where the bytes came from (a reference, several joined by ` + `)
    revision: str | None = None
    license: str | None = None
    pinned: bool = True  # the hash was known before the bytes were; False means trusted on first use
    # Of the file when it was verified. A file that still has all of them and its size holds the same bytes: nobody can
    # set a `ctime`, and a restored copy has a new one.
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    device: int = 0
    registry: str | None = None  # which ones the stored profile was made with (see `tea_models.profile.stored`)

    @property
    def filename(self) -> str:
        return PurePosixPath(self.file).name

    @property
    def stamp(self) -> tuple[int, ...]:
        """What is compared with the file's own, see `stamp_of`."""
        return self.size, self.mtime_ns, self.ctime_ns, self.inode, self.device

    def stamped(self, stamp: tuple[int, ...]) -> Record:
        """The record with another stamp; the size stays what was verified."""
        _, mtime_ns, ctime_ns, inode, device = stamp
        return replace(self, mtime_ns=mtime_ns, ctime_ns=ctime_ns, inode=inode, device=device)

    def as_file(self) -> ModelFile:
        """The file as something to fetch again from where it came; `UsageError` where nothing could be asked."""
        return ModelFile(self.filename, self.size, self.sha256, (Source.parse(self.source, self.revision),))

    def means(self, file: ModelFile) -> bool:
        """Whether this is the record of a file: by hash, or without a pin by the source it was pulled from."""
        if file.sha256 is not None:
            return self.sha256 == file.sha256
        return self.source in map(str, file.sources) and file.size in (None, self.size)


@dataclass(frozen=True, slots=True)
class Installed:
    """A recorded file and how it is found now: `changed` is to be hashed again before it is trusted."""

    record: Record
    path: Path
    state: Literal["ok", "changed", "missing"]


def stamp_of(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written, replaced, copied or restored: size, both times, inode, device."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def read_record(path: Path | str) -> Record | None:
    """Read a record; None if there is none, or it can't be understood."""
    try:
        data: Any = json.loads(read_own(path) or b"")
        known = {field.name for field in fields(Record)}
        record = Record(**{key: value for key, value in data.items() if key in known})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    relative = PurePosixPath(record.file) if isinstance(record.file, str) else PurePosixPath("/")
    inside = not relative.is_absolute() and ".." not in relative.parts and relative.parts[:1] not in ((), (HIDDEN,))
    texts = (record.sha256, record.model, record.source)
    ok = inside and all(type(n) is int for n in record.stamp) and all(isinstance(text, str) for text in texts)
    return record if ok and data.get("schema") == RECORD_SCHEMA else None
