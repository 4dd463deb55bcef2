"""Find the registry entry whose corrections apply to a file that was named by a path, not by its name.

Loading the registry takes longer than reading a header, so it is only loaded when its text can have something to say:
when it mentions the hash of the chat template, or of the file as the store recorded it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tea_models.gguf.header import Header
    from tea_models.registry import Entry
    from tea_models.settings import Settings

_PACKAGE = Path(__file__).resolve().parent


def entry_of(header: Header, settings: Settings, *, path: str | None, sha256: str | None = None) -> Entry | None:
    """The registry entry that has corrections for a file, or None.

    Args:
        header: Its header.
        settings: Which registry files there are, and where the store is.
        path: Where the file lies, if it is on this machine.
        sha256: Its hash, if it is known.

    Raises:
        ConfigError: A registry file is wrong.
    """
    template = header.metadata.get("tokenizer.chat_template")
    texts = _registry_texts(settings)
    if not isinstance(template, str) and not any("metadata:" in text for text in texts):
        return None  # the only other corrections are of chat templates and stop texts
    digest = _sha256(template) if isinstance(template, str) else ""
    if digest and _mentioned(digest, texts):
        from tea_models.registry import Registry

        for entry in Registry.load(settings).entries.values():
            if any(override.replaces_sha256 == digest for override in entry.overrides.chat_templates):
                return entry
    if sha256 is None and path is not None:
        sha256 = recorded_sha256(path, settings)
    if sha256 is None or not _mentioned(sha256, texts):
        return None
    from tea_models.registry import Registry

    found = Registry.load(settings).by_sha256(sha256)
    return found[0] if found else None


def _sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def _mentioned(digest: str, texts: list[str]) -> bool:
    return any(digest in text for text in texts)


def _registry_texts(settings: Settings) -> list[str]:
    builtin = next(
        (path for path in (_PACKAGE / "registry.yaml", _PACKAGE.parent / "registry.yaml") if path.is_file()), None
    )
    texts = []
    for path in [*([builtin] if builtin else []), *settings.registry_files]:
        try:
            texts.append(path.read_text("utf-8", "replace"))
        except OSError:
            continue  # loading the registry says what is wrong with it
    return texts


def recorded_sha256(path: str, settings: Settings) -> str | None:
    """The hash of a file of the store that has not changed since it was verified, or None."""
    root = os.path.realpath(settings.store_dir)
    if not os.path.realpath(path).startswith(root + os.sep):
        return None
    from tea_models.store import Store

    record = Store(settings.store_dir).record_of(Path(path))
    status = Path(path).stat()
    if record is None or (record.size, record.mtime_ns, record.inode) != (
        status.st_size,
        status.st_mtime_ns,
        status.st_ino,
    ):
        return None
    return record.sha256
