"""One verified download into a partial file."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tea_models.errors import (
    AccessDeniedError,
    ChecksumMismatchError,
    IntegrityError,
    SizeMismatchError,
    SourceUnavailableError,
)
from tea_models.transfer.client import display_url, open_stream
from tea_models.transfer.progress import Progress, Silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import httpx2

_STATE_SUFFIX: Final = ".state"


@dataclass(frozen=True, slots=True)
class TransferResult:
    """What was downloaded.

    Attributes:
        sha256: Digest of all bytes of the file, lower-case hexadecimal.
        size: Bytes.
        resumed_from: Bytes that were there from an earlier run and were kept.
        url: The address that was asked, without credentials and query.
    """

    sha256: str
    size: int
    resumed_from: int
    url: str


def state_path(partial: Path) -> Path:
    """The file beside a partial that remembers how far it is."""
    return partial.with_name(partial.name + _STATE_SUFFIX)


def discard(partial: Path) -> None:
    """Remove a partial and its state, if they are there."""
    partial.unlink(missing_ok=True)
    state_path(partial).unlink(missing_ok=True)


def download(
    url: str,
    destination_partial: Path,
    *,
    client: httpx2.Client,
    headers: Mapping[str, str] | None = None,
    size: int | None = None,
    sha256: str | None = None,
    connections: int = 4,  # noqa: ARG001
    progress: Progress | None = None,
    name: str = "",
    expect_gguf: bool = False,
) -> TransferResult:
    """Download into `destination_partial`, going on where an earlier run stopped; never renames it.

    Args:
        url: `https:`; plain `http:` only for this machine itself or with a `sha256`.
        destination_partial: Where the bytes go. Kept when the download is interrupted, removed when it is proved wrong.
        client: Made by `make_client`.
        headers: For the origin of `url` only (credentials belong here, not into `url`).
        size: The expected size; a hard limit.
        sha256: The expected digest.
        connections: Parallel connections at most.
        progress: Told how far it is.
        name: How people call the file; the end of the address by default.
        expect_gguf: Refuse early what does not begin as a GGUF file does.

    Raises:
        IntegrityError: The bytes are not those that were expected; the partial is gone.
        SourceUnavailableError: The source did not deliver; what came is kept.
        AccessDeniedError: The source wants a token or an accepted licence.
        DiskFullError: The disk has no room for it.
        UsageError: The address may not be used.
    """
    progress = progress or Silent()
    shown = display_url(url)
    hasher = hashlib.sha256()
    with closing(open_stream(client, url, headers or {}, pinned=sha256 is not None)) as response:
        if response.status_code in (401, 403):
            raise AccessDeniedError(f"{shown}: the server answered {response.status_code}")
        if response.status_code != 200:
            raise SourceUnavailableError(f"{shown}: the server answered {response.status_code}")
        length = response.headers.get("content-length", "")
        total = size if size is not None else int(length) if length.isdecimal() else None
        progress.start(name or shown.rsplit("/", 1)[-1], total, 0)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            done = 0
            with os.fdopen(os.open(destination_partial, flags, 0o644), "wb", buffering=0) as file:
                for chunk in response.iter_raw():
                    if not done and expect_gguf and not chunk.startswith((b"GGUF", b"FUGG")):
                        raise IntegrityError(f"{shown}: not a GGUF file")
                    done += len(chunk)
                    if total is not None and done > total:
                        raise SizeMismatchError(shown, expected=total, actual=done)
                    file.write(chunk)
                    hasher.update(chunk)
                    progress.advance(len(chunk))
        finally:
            progress.finish()
    if total is not None and done != total:
        raise SizeMismatchError(shown, expected=total, actual=done)
    actual = hasher.hexdigest()
    if sha256 is not None and actual != sha256:
        discard(destination_partial)
        raise ChecksumMismatchError(shown, expected=sha256, actual=actual)
    return TransferResult(sha256=actual, size=done, resumed_from=0, url=shown)
