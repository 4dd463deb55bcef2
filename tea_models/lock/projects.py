"""Which locks a store knows of, so that cleaning up for one project takes nothing from another.

`sync` leaves a small file in the store for each lock that it was given: where the lock lies, and the hashes that it
named then.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tea_models.disk.regular import read_own
from tea_models.errors import DiskFullError, StoreError, TeaModelsError
from tea_models.lockfile import read_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from tea_models.store import Store


def remember_lock(store: Store, lock_path: Path, sha256: AbstractSet[str | None]) -> None:
    """Note that a project's lock names files of the store, where the store can be written."""
    lock = str(lock_path.resolve())
    path = _folder(store) / f"{hashlib.sha256(lock.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.json"
    text = json.dumps({"lock": lock, "sha256": sorted(map(str, sha256))}, indent=2) + "\n"
    if store.root.is_dir() and read_own(path) != text.encode():
        with contextlib.suppress(StoreError, DiskFullError):
            store.write_hidden(path, text)


def locked_elsewhere(store: Store, lock_path: Path) -> dict[str, Path]:
    """The hashes that other projects' locks name, each with such a lock. A lock that is gone names nothing."""
    own = lock_path.resolve()
    return {sha256: lock for lock, known in _known(store) if lock != own and lock.exists() for sha256 in known}


def _known(store: Store) -> Iterator[tuple[Path, set[str]]]:
    folder = _folder(store)
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            document = json.loads(read_own(path) or b"")
            lock, noted = Path(document["lock"]), set(document["sha256"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        with contextlib.suppress(TeaModelsError):  # what it named when it could be read
            noted = {str(file.sha256) for file in read_lock(lock).files}
        yield lock, noted


def _folder(store: Store) -> Path:
    return store.hidden / "projects"
