"""Tell the path of a single file from other references without loading anything: the usual case is the fastest."""

from __future__ import annotations

import os
from pathlib import Path


def plain_path(path_or_ref: Path | str) -> str | None:
    """The path, if this is one of a single file that exists; None for a name, a shard, an address, or nothing.

    Args:
        path_or_ref: A path, or a reference as a user types it.
    """
    text = str(path_or_ref)
    looks_so = isinstance(path_or_ref, Path) or os.sep in text or text.endswith(".gguf")
    scheme = ":" in text.split(os.sep, 1)[0]
    shard = "-of-" in text.rpartition(os.sep)[2]
    if not looks_so or scheme or shard or not os.path.lexists(text):
        return None
    return text
