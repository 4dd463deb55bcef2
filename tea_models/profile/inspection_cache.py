"""What `inspect` found before in a file that has not changed since, kept beside the store.

For showing only: a file's stat can be made to look unchanged, so nothing that is decided about bytes (`verify`, loading
a model) looks here. It spares running a chat template and walking through a large vocabulary.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tea_models.profile.plain_path import plain_path

if TYPE_CHECKING:
    from tea_models.settings import Settings

SMALLEST = 4 << 20  # reading a smaller file takes no longer than looking here
SETTLED_NS = 2_000_000_000  # a file that was just written may change again within the clock's grain
_LARGEST_ENTRY = 8 << 20
_PACKAGE = Path(__file__).parent
# What the answer depends on beside the file: this code, and the registry.
_CODE = (
    "inspect.py",
    "profile/gather.py",
    "gguf/loadable.py",
    "memory/formula.py",
    "chat/capabilities.py",
    "cli/inspect_view.py",
    "registry.yaml",
)


def recall(model: Path | str, settings: Settings) -> dict[str, Any] | None:
    """What was remembered about a file, if it has not changed since.

    Args:
        model: A path, or a reference (about which nothing is remembered).
        settings: Where the store is, and which registry files there are.
    """
    found = _entry(model, settings)
    if found is None:
        return None
    place, key = found
    try:
        if place.stat().st_size > _LARGEST_ENTRY:
            return None
        import json

        entry = json.loads(place.read_bytes())
        if entry["key"] == key and isinstance(entry["answer"], dict):
            answer: dict[str, Any] = entry["answer"]
            return answer
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # none, or not readable: it is made anew
    return None


def remember(model: Path | str, settings: Settings, answer: dict[str, Any]) -> None:
    """Keep an answer about a file; does nothing where the store can't be written.

    Args:
        model: A path, or a reference (which is not remembered).
        settings: Where the store is, and which registry files there are.
        answer: What `recall` is to give back; JSON.
    """
    found = _entry(model, settings)
    if found is None:
        return
    place, key = found
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        import json

        from tea_models.disk.atomic import write_atomically

        write_atomically(place, json.dumps({"key": key, "answer": answer}), durable=False)


def _entry(model: Path | str, settings: Settings) -> tuple[Path, list[Any]] | None:
    """Where the answer about a file is kept and what must be equal for it to hold."""
    path = plain_path(model)
    if path is None:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 - Path.stat on a text with a NUL is the same ValueError
    except (OSError, ValueError):
        return None
    settled = status.st_mtime_ns < time.time_ns() - SETTLED_NS
    if not stat.S_ISREG(status.st_mode) or status.st_size < SMALLEST or not settled:
        return None
    of_file = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    others = [*(_PACKAGE / name for name in _CODE), _PACKAGE.parent / "registry.yaml", *settings.registry_files]
    key = [path.rpartition(os.sep)[2], *of_file, sys.byteorder, *(_stamp(other) for other in others)]
    place = settings.store_dir / ".tea" / "cache" / "inspect" / f"{status.st_dev:x}-{status.st_ino:x}.json"
    return place, key


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"
