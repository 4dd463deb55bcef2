"""File names: which upstream names are taken as they are, and what stands for a folder or a download."""

from __future__ import annotations

import hashlib
import os
import unicodedata

from tea_models.errors import StoreError

_MAX_NAME_BYTES = 200  # of the 255 that file systems allow; suffixes for records and partials come on top
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def check_name(filename: str) -> None:
    """Refuse an upstream name that can't be a plain file name on every system."""
    forbidden = next((c for c in filename if c in '/\\:*?"<>|' or not (c.isprintable() or c == " ")), "")
    problems = {
        "it is empty": not filename,
        f"it has more than {_MAX_NAME_BYTES} bytes": len(filename.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES,
        f"it starts with {filename[:1]!r}": filename.startswith((".", "-", "~", " ")),
        f"it ends with {filename[-1:]!r}": filename.endswith((".", " ")),
        "it is reserved on some systems": filename.partition(".")[0].rstrip(" ").lower() in _RESERVED,
        f"it has the character {forbidden!r}": bool(forbidden),
    }
    problem = next((told for told, true in problems.items() if true), None)
    if problem:
        shown = filename if len(filename) <= 60 else filename[:57] + "…"
        hint = "give the file a plain name in a registry.yaml entry (`filename:`)"
        raise StoreError(f"{shown!r} can't be used as a file name: {problem}", hint=hint)


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
    return hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]
