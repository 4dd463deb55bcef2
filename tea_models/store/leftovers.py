"""`gc`: what lies in the store's hidden folder for nobody's sake any more, and removing it.

Model files are never touched here: `rm` removes those.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NoReturn

from tea_models.disk.space import taken_by
from tea_models.store import Store
from tea_models.store.locks import hold, try_hold
from tea_models.store.names import host_key

# Another host's lock may not be seen here, and some file systems ignore locks: what was written lately may be in use.
QUIET_SECONDS: Final = 15 * 60
_UNIQUE = re.compile(r"\.[0-9]+-[0-9a-f]{8}\.part")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that can go: of an unfinished download, moved aside by a repair, of a file that is gone, of a write."""

    path: Path
    kind: Literal["partial", "broken", "orphan", "draft"]
    size: int
    reason: str


def leftovers(store: Store, *, now: float | None = None) -> list[Leftover]:
    """What can go, without touching it."""
    now = time.time() if now is None else now
    return [*_partials(store, now), *_bookkeeping(store, now)]


def collect(store: Store, found: list[Leftover]) -> list[Leftover]:
    """Remove leftovers, except those that came into use meanwhile; returns what was removed."""
    removed = []
    for item in found:
        with contextlib.suppress(BlockingIOError), contextlib.ExitStack() as stack:
            if item.kind == "partial":  # nobody may start to write it meanwhile
                lock = _lock_of(store, item.path)
                lock.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(lock, waiting=_refuse_to_wait))
            if item.path.is_dir() and not item.path.is_symlink():
                shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)
            removed.append(item)
    return removed


def _partials(store: Store, now: float) -> Iterator[Leftover]:
    for path in sorted(store.partials_dir.iterdir()) if store.partials_dir.is_dir() else ():
        if not try_hold(_lock_of(store, path)):
            continue  # it is being written
        with contextlib.suppress(OSError):
            every = [path, *path.rglob("*")] if path.is_dir() else [path]
            idle = now - max(item.lstat().st_mtime for item in every)
            # A free lock proves that it is not being written if it was made on this host, where locks work.
            if idle < QUIET_SECONDS and (f".{host_key()}." not in path.name or _UNIQUE.search(path.name)):
                continue
            told = f"an unfinished download, last written {max(0.0, idle) / 86400:.0f} days ago"
            yield Leftover(path, "partial", sum(map(taken_by, every)), told)


def _bookkeeping(store: Store, now: float) -> Iterator[Leftover]:
    for path in sorted(path for path in store.hidden.rglob("*") if not path.is_dir()):
        folder = path.relative_to(store.hidden).parts[0]
        if folder == "partial":
            continue
        found = path.lstat()
        size = found.st_size if found.st_nlink == 1 else 0
        if folder == "broken":
            yield Leftover(path, "broken", size, "was found broken and moved aside")
        elif path.name.startswith("."):
            if path.suffix == ".tmp" and now - found.st_mtime >= QUIET_SECONDS:
                yield Leftover(path, "draft", size, "a write that did not end")
        elif folder in ("records", "profiles") and path.suffix == ".json":
            owner = store.root / path.relative_to(store.hidden / folder).with_suffix("")
            if not (owner.exists() and store.contains(owner)):
                yield Leftover(path, "orphan", size, f"its file is gone: {owner.name}")


def _lock_of(store: Store, partial: Path) -> Path:
    return store.lock_path(partial.name.partition(".")[0])


def _refuse_to_wait() -> NoReturn:
    raise BlockingIOError
