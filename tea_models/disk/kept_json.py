"""Small JSON files of our own bookkeeping: one that is missing or damaged is worth nothing, and no reason to fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tea_models.disk.atomic import write_atomically


def read_kept(path: Path) -> Any:
    """What a file holds; None where there is none, or it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a list that a file holds."""
    found = read_kept(path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def keep(path: Path, value: Any) -> bool:
    """Write a file, and its folder where it is missing; False where that can't be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(value), durable=False)
    except OSError:
        return False
    return True
