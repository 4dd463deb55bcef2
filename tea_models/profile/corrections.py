"""Find the registry entry whose corrections apply to a file that was named by a path, not by its name.

Loading the registry takes longer than reading a header, so it is only loaded when it can have something to say: when
its text holds the hash of the chat template, or of the file as the store recorded it. What it says is asked of the
parsed entry.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tea_models.gguf.header import Header
    from tea_models.registry.entries import Entry
    from tea_models.settings import Settings

_PACKAGE = Path(__file__).resolve().parent.parent


def entry_of(header: Header, settings: Settings, *, path: str | None, sha256: str | None = None) -> Entry | None:
    """The registry entry that has corrections for a file, or None.

    Raises:
        ConfigError: A registry file is wrong.
    """
    template = header.metadata.get("tokenizer.chat_template")
    if sha256 is None and path is not None:
        sha256 = recorded_sha256(path, settings)
    digest = text_sha256(template) if isinstance(template, str) else None
    hashes = [known for known in (sha256, digest) if known is not None]
    if not hashes or not any(_may_name(text, hashes) for text in _registry_texts(settings)):
        return None
    from tea_models.registry.entries import Registry

    registry = Registry.load(settings)
    found = registry.by_sha256(sha256) if sha256 is not None else None
    if found is not None:
        return found[0]
    for entry in registry.entries.values():
        if any(override.replaces_sha256 == digest for override in entry.overrides.chat_templates):
            # Another model with the same bad template: what else the entry says is not about this one.
            return replace(entry, license="", overrides=replace(entry.overrides, metadata={}))
    return None


def _may_name(text: str, hashes: list[str]) -> bool:
    """Whether a registry file can hold one of the hashes: as it is, or written with escapes."""
    return "\\" in text or any(known in text for known in hashes)


def _registry_texts(settings: Settings) -> list[str]:
    builtin = [path for path in (_PACKAGE / "registry.yaml", _PACKAGE.parent / "registry.yaml") if path.is_file()]
    texts = []
    for path in [*builtin[:1], *settings.registry_files]:
        try:
            texts.append(path.read_text("utf-8", "replace"))
        except OSError:
            continue  # loading the registry says what is wrong with it
    return texts


def recorded_sha256(path: str, settings: Settings) -> str | None:
    """The hash of a file of the store that has not changed since it was verified, or None."""
    root, file = settings.store_dir.absolute(), Path(path).absolute()
    if not file.is_relative_to(root):
        return None
    from tea_models.store import Store

    record = Store(root).record_of(file)
    try:
        status = file.stat()
    except OSError:
        return None
    now = (status.st_size, status.st_mtime_ns, status.st_ino)
    return record.sha256 if record is not None and now == (record.size, record.mtime_ns, record.inode) else None


def text_sha256(text: str) -> str:
    """SHA-256 of a text as UTF-8; of one that is broken too."""
    import hashlib  # slow to import, and not every header has a template

    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
