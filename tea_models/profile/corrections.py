"""Find the registry entry whose corrections apply to a file that was named by a path, not by its name."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.gguf.header import Header
    from tea_models.registry.entries import Entry
    from tea_models.settings import Settings


def entry_of(header: Header, settings: Settings, *, path: Path | None, sha256: str | None = None) -> Entry | None:
    """The registry entry that has corrections for a file, or None.

    Raises:
        ConfigError: A registry file is wrong.
    """
    template = header.metadata.get("tokenizer.chat_template")
    if sha256 is None and path is not None:
        sha256 = recorded_sha256(path, settings)
    if sha256 is None and not isinstance(template, str):
        return None
    from tea_models.registry.entries import Registry

    registry = Registry.load(settings)
    found = registry.by_sha256(sha256) if sha256 is not None else None
    if found is not None:
        return found[0]
    digest = text_sha256(template) if isinstance(template, str) else None
    for entry in registry.entries.values():
        if any(override.replaces_sha256 == digest for override in entry.overrides.chat_templates):
            # Another model with the same bad template: what else the entry says is not about this one.
            return replace(entry, license="", overrides=replace(entry.overrides, metadata={}))
    return None


def recorded_sha256(path: Path, settings: Settings) -> str | None:
    """The hash of a file of the store that has not changed since it was verified, or None."""
    if not path.absolute().is_relative_to(settings.store_dir.absolute()):
        return None
    from tea_models.store import Store

    record = Store(settings.store_dir.absolute()).record_of(path.absolute())
    try:
        status = path.stat()
    except OSError:
        return None
    now = (status.st_size, status.st_mtime_ns, status.st_ino)
    return record.sha256 if record is not None and now == (record.size, record.mtime_ns, record.inode) else None


def text_sha256(text: str) -> str:
    """SHA-256 of a text as UTF-8; of one that is broken too."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
