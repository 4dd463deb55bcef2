"""What is known about one file of the store, and its form on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from tea_models.files import ModelFile, Source

if TYPE_CHECKING:
    import os
    from pathlib import Path


HIDDEN = ".tea"
RECORD_SCHEMA = "tea.store-record/1"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known about one file of the store.

    Attributes:
        file: Its path in the store, with `/`.
        size: Bytes.
        sha256: Of the bytes when they were last verified.
        model: The name or reference it was pulled as.
        source: Where the bytes came from (a reference, several joined by ` + `).
        revision: Commit or version, if the source has one.
        license: Its licence, if known.
        pinned: The hash was known before the bytes were; False means trusted on first use.
        mtime_ns: Time stamp of the file then; with `inode` and `size`, an unchanged file is known without hashing.
        inode: Inode number of the file then.
    """

    file: str
    size: int
    sha256: str
    model: str
    source: str
    revision: str | None = None
    license: str | None = None
    pinned: bool = True
    mtime_ns: int = 0
    inode: int = 0

    @property
    def filename(self) -> str:
        return PurePosixPath(self.file).name

    def as_file(self) -> ModelFile:
        """The file as something to fetch again from where it came."""
        return ModelFile(self.filename, self.size, self.sha256, (Source.parse(self.source, self.revision),))


@dataclass(frozen=True, slots=True)
class Installed:
    """A recorded file and how it is found now.

    Attributes:
        state: `ok` (stat as recorded), `changed` (to be hashed again before it is trusted) or `missing`.
    """

    record: Record
    path: Path
    state: Literal["ok", "changed", "missing"]


@dataclass(frozen=True, slots=True)
class Partial:
    """A leftover of an unfinished download. `key` names its lock."""

    path: Path
    key: str
    size: int
    mtime_ns: int


def read_record(path: Path) -> Record | None:
    """Read a record; None if there is none, or it can't be understood."""
    try:
        data: Any = json.loads(path.read_text("utf-8"))
        known = {field.name for field in fields(Record)}
        record = Record(**{key: value for key, value in data.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    numbers = (record.size, record.mtime_ns, record.inode)
    relative = PurePosixPath(record.file) if isinstance(record.file, str) else PurePosixPath("/")
    inside = not relative.is_absolute() and ".." not in relative.parts and relative.parts[:1] not in ((), (HIDDEN,))
    texts = (record.sha256, record.model, record.source)
    ok = inside and all(type(n) is int for n in numbers) and all(isinstance(text, str) for text in texts)
    return record if ok and data.get("schema") == RECORD_SCHEMA else None


def restamped(record: Record, found: os.stat_result, *, file: str | None = None) -> Record:
    """The record with the time stamp and inode of the file as it is now."""
    values = asdict(record) | {"mtime_ns": found.st_mtime_ns, "inode": found.st_ino, "file": file or record.file}
    return Record(**values)


def means(record: Record, file: ModelFile) -> bool:
    """Whether a record is that of a file: by hash, or without a pin by the source it was pulled from."""
    if file.sha256 is not None:
        return record.sha256 == file.sha256
    return record.source in map(str, file.sources) and file.size in (None, record.size)
