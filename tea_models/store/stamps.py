"""What was hashed in a store that can't be written: remembered in the user's cache, or nobody could ever trust it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

from tea_models.disk.atomic import write_atomically
from tea_models.disk.regular import read_own

if TYPE_CHECKING:
    from pathlib import Path


class Stamps:
    """Stamps of files that were found to have their recorded bytes.

    Args:
        root: The store's folder.
        cache_dir: Where to keep them; None for nowhere.
    """

    def __init__(self, root: Path, cache_dir: Path | None) -> None:
        name = hashlib.sha256(str(root).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._path = cache_dir / "stamps" / f"{name}.json" if cache_dir is not None else None
        self._known: dict[str, Any] | None = None

    def knows(self, file: str, sha256: str, stamp: tuple[int, ...]) -> bool:
        """Whether a file with this stamp was found to have these bytes."""
        return self._all().get(file) == [sha256, *stamp]

    def remember(self, file: str, sha256: str, stamp: tuple[int, ...]) -> None:
        """Keep a stamp, if the cache can be written."""
        known = self._all() | {file: [sha256, *stamp]}
        self._known = known
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._path, json.dumps(known), durable=False)

    def _all(self) -> dict[str, Any]:
        if self._known is None:
            data = read_own(self._path) if self._path is not None else None
            try:
                found = json.loads(data or b"{}")
            except (ValueError, RecursionError):
                found = {}
            self._known = found if isinstance(found, dict) else {}
        return self._known
