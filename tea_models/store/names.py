"""File names: which upstream names are taken as they are, and what stands for a folder or a download."""

from __future__ import annotations

import hashlib
import os
import unicodedata

from tea_models.errors import StoreError

_MAX_NAME_BYTES = 200  # of the 255 that file systems allow; suffixes for records and partials come on top
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_FORBIDDEN = frozenset('/\\:*?"<>|')


def check_name(filename: str) -> None:
    """Refuse an upstream name that can't be a plain file name on every system.

    Raises:
        StoreError: The name has separators, drive letters, control characters, is reserved, too long, …
    """
    stem = filename.partition(".")[0].rstrip(" ").lower()
    problem = (
        "it is empty"
        if not filename
        else f"it has more than {_MAX_NAME_BYTES} bytes"
        if len(filename.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES
        else f"it starts with {filename[0]!r}"
        if filename[0] in ".-~ "
        else f"it ends with {filename[-1]!r}"
        if filename[-1] in ". "
        else "it is reserved on some systems"
        if stem in _RESERVED
        else next(
            (f"it has the character {c!r}" for c in filename if c in _FORBIDDEN or not (c.isprintable() or c == " ")),
            "",
        )
    )
    if problem:
        shown = filename if len(filename) <= 60 else filename[:57] + "…"
        raise StoreError(
            f"{shown!r} can't be used as a file name: {problem}",
            hint="give the file a plain name in a registry.yaml entry (`filename:`)",
        )


def safe_part(part: str) -> str:
    """A folder name made from an owner, a repository or a host."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in part).strip(".")[:80]
    return f"_{kept}" if not kept or kept[0] == "-" or kept.partition(".")[0].lower() in _RESERVED else kept


def key_of(sha256: str | None, source: str) -> str:
    """The name under which a download is continued: its hash, or one of where it comes from."""
    return sha256 or "url-" + hashlib.sha256(source.encode()).hexdigest()[:40]


def folded(name: str) -> str:
    """What two names have in common that some file systems take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def host_key() -> str:
    """What tells this host from others that share a store; `socket` says the same, but takes long to import."""
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return hashlib.sha256(name.encode()).hexdigest()[:8]
