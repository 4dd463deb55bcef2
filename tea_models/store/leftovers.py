"""`gc`: what lies in the store's hidden folder for nobody's sake any more, and removing it.

Model files are never touched here: `rm` removes those.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from tea_models.disk.space import taken_by
from tea_models.store.locks import hold, try_hold
from tea_models.store.names import host_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tea_models.store import Store

# Another host's lock may not be seen here, and some file systems ignore locks: what was written lately may be in use.
QUIET_SECONDS: Final = 15 * 60
_UNIQUE = re.compile(r"\.[0-9]+-[0-9a-f]{8}\.part")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that can go.

    Attributes:
        path: Where it lies.
        kind: `partial` (of an unfinished download), `broken` (moved aside by a repair), `orphan` (a record or profile
            of a file that is gone), `draft` (of a write that did not end).
        size: Bytes that it takes.
        reason: Why it can go.
    """

    path: Path
    kind: Literal["partial", "broken", "orphan", "draft"]
    size: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}


class _InUseError(Exception):
    pass


def leftovers(store: Store, *, now: float | None = None) -> list[Leftover]:
    """What can go, without touching it.

    Args:
        store: The store.
        now: Seconds since the epoch; the present by default.
    """
    now = time.time() if now is None else now
    return [*_partials(store, now), *_broken(store), *_orphans(store), *_drafts(store, now)]


def collect(store: Store, found: list[Leftover]) -> list[Leftover]:
    """Remove leftovers, except those that came into use meanwhile.

    Args:
        store: The store.
        found: From `leftovers`.

    Returns:
        What was removed.

    Raises:
        OSError: Something can't be removed.
    """
    removed = []
    for item in found:
        if item.kind == "partial":
            with contextlib.suppress(_InUseError), _unused(store, item.path):
                _remove(item.path)
                removed.append(item)
        else:
            _remove(item.path)
            removed.append(item)
    return removed


def _partials(store: Store, now: float) -> Iterator[Leftover]:
    for path in sorted(store.partials_dir.iterdir()) if store.partials_dir.is_dir() else ():
        if not try_hold(store.lock_path(path.name.partition(".")[0])):
            continue  # it is being written
        with contextlib.suppress(OSError):
            every = [path, *path.rglob("*")] if path.is_dir() else [path]
            idle = now - max(map(_mtime, every))
            if idle < QUIET_SECONDS and not _of_this_host(path.name):
                continue
            days = max(0.0, idle) / 86400
            age = f"{days:.0f} days ago" if days >= 2 else "lately"
            size = sum(map(taken_by, every))
            yield Leftover(path, "partial", size, f"an unfinished download, last written {age}")


def _broken(store: Store) -> Iterator[Leftover]:
    for path in _files(store.hidden / "broken"):
        yield Leftover(path, "broken", _size(path), "was found broken and moved aside")


def _orphans(store: Store) -> Iterator[Leftover]:
    for kind in ("records", "profiles"):
        folder = store.hidden / kind
        for path in _files(folder):
            owner = store.root / path.relative_to(folder).with_suffix("")
            if (
                path.suffix == ".json"
                and not path.name.startswith(".")
                and not (owner.exists() and store.contains(owner))
            ):
                yield Leftover(path, "orphan", _size(path), f"its file is gone: {owner.name}")


def _drafts(store: Store, now: float) -> Iterator[Leftover]:
    for path in _files(store.hidden):
        if path.name.startswith(".") and path.suffix == ".tmp" and now - _mtime(path) >= QUIET_SECONDS:
            yield Leftover(path, "draft", _size(path), "a write that did not end")


def _of_this_host(name: str) -> bool:
    """Whether a free lock proves that a partial is not being written: made on this host, where locks work."""
    host = host_key()
    return f".{host}." in name and not _UNIQUE.search(name)


@contextlib.contextmanager
def _unused(store: Store, path: Path) -> Iterator[None]:
    """Keep others from starting to write a partial while it is removed."""

    def busy() -> None:
        raise _InUseError

    lock = store.lock_path(path.name.partition(".")[0])
    lock.parent.mkdir(parents=True, exist_ok=True)
    with hold(lock, waiting=busy):
        yield


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else []


def _size(path: Path) -> int:
    found = path.lstat()
    return found.st_size if found.st_nlink == 1 else 0


def _mtime(path: Path) -> float:
    return path.lstat().st_mtime
