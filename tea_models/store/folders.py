"""The store's folders: none of them is a link, and where the store is shared by a group, so are they."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from tea_models.errors import StoreError
from tea_models.store.record import HIDDEN, Record, read_record

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_TICK_NS: Final = 100_000_000  # two changes of a folder within so short a time may leave one time stamp


def link_above(root: Path, path: Path) -> Path | None:
    """A folder between the store and a path that is a link: what lies behind it is not the store's."""
    above = [parent for parent in path.parents if parent != root and parent.is_relative_to(root)]
    return next((parent for parent in reversed(above) if parent.is_symlink()), None)


def refuse_links(root: Path, path: Path) -> None:
    """Refuse a path that leads out of the store through a link.

    Raises:
        StoreError: It does.
    """
    link = link_above(root, path)
    if link is not None:
        raise StoreError(
            f"{link} is a link to another folder: nothing is written or removed behind it",
            hint="put a folder in its place",
        )


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder of the store, with those above it."""
    refuse_links(root, folder / "any")
    if folder.is_dir():
        return
    missing = [path for path in (folder, *folder.parents) if path.is_relative_to(root) and not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    shared = root.stat().st_mode & 0o2077
    for path in missing:
        if path != root and shared & 0o022:
            with contextlib.suppress(OSError):
                path.chmod(0o700 | shared)


class Records:
    """All records of a store, read once, and again when a folder of records has changed."""

    def __init__(self, root: Path) -> None:
        self._folder = root / HIDDEN / "records"
        self._read: list[Record] = []
        self._stamps: dict[str, int] = {}  # of the folders

    def all(self) -> list[Record]:
        """By path; unreadable ones are left out (their files count as unrecorded)."""
        if not self._stamps or self._stamps != _modified(self._stamps):
            found = [(here, names) for here, _, names in os.walk(self._folder)]
            self._stamps = _modified(here for here, _ in found)
            paths = sorted(os.path.join(here, name) for here, names in found for name in names)  # noqa: PTH118 - many
            self._read = [record for path in paths if (record := read_record(path)) is not None]
            if any(time.time_ns() - stamp < _TICK_NS for stamp in self._stamps.values()):
                self._stamps = {}
        return self._read


def _modified(folders: Iterable[str]) -> dict[str, int]:
    found = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            found[folder] = os.stat(folder).st_mtime_ns  # noqa: PTH116 - a text
    return found
