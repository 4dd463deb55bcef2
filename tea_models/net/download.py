"""One verified download into a partial file.

    download ──► _Download: attempts, each with a Board of parts, some workers (one connection each), and a hasher
                   worker: take a part, ask for it, judge the answer, write what comes; on trouble wait and try again
                   main:   start more workers once the server has proved that it can, save the state, hear Ctrl-C

An attempt that finds that the partial and the server don't fit (`StaleError`), or whose bytes have the wrong hash
though a clean download may have the right one, is followed by another from zero.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tea_models.errors import (
    ChecksumMismatchError,
    MalformedGGUFError,
    SizeMismatchError,
    SourceUnavailableError,
)
from tea_models.net.answers import StaleError
from tea_models.net.attempt import Attempt, Request
from tea_models.net.client import check_scheme, display_url, has_credentials
from tea_models.net.growing import size_by_header
from tea_models.net.partial import PartialFile, State, discard, fingerprint
from tea_models.net.ranges import Ranges
from tea_models.net.retry import RetryPolicy
from tea_models.progress import Progress, Silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import httpx2

_STALE_LIMIT: Final = 3
_SAVE_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.1


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


def download(
    url: str,
    destination_partial: Path,
    *,
    client: httpx2.Client,
    headers: Mapping[str, str] | None = None,
    size: int | None = None,
    sha256: str | None = None,
    connections: int = 4,
    progress: Progress | None = None,
    name: str = "",
    expect_gguf: bool = False,
    policy: RetryPolicy | None = None,
) -> TransferResult:
    """Download into `destination_partial`, going on where an earlier run stopped; never renames it.

    Args:
        url: `https:`; plain `http:` only for this machine itself or with a `sha256`.
        destination_partial: Where the bytes go. Kept when the download is interrupted, removed when it is proved wrong.
            One process at a time may use it.
        client: Made by `make_client`.
        headers: For the origin of `url` only (credentials belong here, not into `url`).
        size: The expected size; a hard limit.
        sha256: The expected digest.
        connections: Parallel connections at most.
        progress: Told how far it is.
        name: How people call the file; the end of the address by default.
        expect_gguf: Refuse early what does not begin as a GGUF file does.
        policy: How often and how long it tries again.

    Raises:
        IntegrityError: The bytes are not those that were expected; wrong ones are gone.
        SourceUnavailableError: The source did not deliver; what came is kept.
        MissingFileError: The source has no such file.
        AccessDeniedError: The source wants a token or an accepted licence.
        DiskFullError: The disk has no room for it.
        UsageError: The address may not be used.
        KeyboardInterrupt: The user stopped it; what came is kept.
    """
    check_scheme(url, pinned=sha256 is not None, credentials=has_credentials(headers or {}))
    shown = display_url(url)
    request = Request(
        url=url,
        shown=shown,
        name=name or shown.rsplit("/", 1)[-1] or shown,
        client=client,
        headers=dict(headers or {}),
        size=size,
        sha256=sha256,
        connections=max(1, connections),
        expect_gguf=expect_gguf,
        policy=policy or RetryPolicy(),
    )
    partial = PartialFile(destination_partial)
    try:
        return _Download(request, partial, progress or Silent()).run()
    except BaseException as error:
        if isinstance(error, ChecksumMismatchError | MalformedGGUFError) or partial.size() == 0:
            discard(destination_partial)
        raise
    finally:
        partial.leave()


class _Download:
    """The attempts at one download."""

    def __init__(self, request: Request, partial: PartialFile, progress: Progress) -> None:
        self._request, self._partial, self._progress = request, partial, progress
        self._plain = False

    def run(self) -> TransferResult:
        stale = 0
        mistrusted = False
        while True:
            state = None if stale or mistrusted else self._usable_state()
            if state is None:
                self._partial.forget()
            resumed = sum(end - start for start, end in state.ranges) if state else 0
            attempt = Attempt(self._request, self._partial, state, self._progress, plain=self._plain)
            try:
                digest, total = self._attend(attempt)
            except StaleError as error:
                stale += 1
                self._plain = self._plain or error.plain or stale > 1
                if stale > _STALE_LIMIT:
                    raise SourceUnavailableError(
                        f"{error.reason}, again and again", hint="try later, or another source"
                    ) from None
                continue
            if self._request.sha256 in (None, digest):
                self._check_whole(total)
                return TransferResult(digest, total, resumed, self._request.shown)
            if mistrusted or not (resumed or attempt.reconnected):
                raise ChecksumMismatchError(
                    self._request.shown,
                    expected=str(self._request.sha256),
                    actual=digest,
                    hint="nothing was kept; the source has another file, or something on the way alters it",
                )
            # Pieces of two files, or a leftover that was damaged: once more, from one answer.
            mistrusted = True
            self._plain = True

    def _check_whole(self, total: int) -> None:
        """Without a pin and a length, a model that was cut short can be told by its header only."""
        request = self._request
        if request.sha256 is not None or not request.expect_gguf:
            return
        needed = size_by_header(self._partial, total)
        if needed is not None and total < needed:
            self._partial.forget()
            hint = "by its own header the model is bigger: something cut it short; nothing was kept"
            raise SizeMismatchError(request.shown, expected=needed, actual=total, hint=hint)

    def _usable_state(self) -> State | None:
        """The state of an earlier run, if its bytes can be a part of what is wanted now."""
        state = self._partial.load()
        request = self._request
        if state is None or not state.ranges or (request.size is not None and state.total not in (None, request.size)):
            return None
        if state.sha256 != request.sha256:
            return None
        if request.sha256 is not None:
            return state  # from whichever address: the hash decides in the end
        if state.source != fingerprint(request.url) or not (state.etag or state.last_modified):
            return None
        # Nothing proves bytes beyond those that were hashed; without a pin they are fetched again.
        checked = Ranges(state.ranges).clipped(state.checked[0])
        return State(state.source, None, state.total, state.etag, state.last_modified, tuple(checked), state.checked)

    def _attend(self, attempt: Attempt) -> tuple[str, int]:
        """Watch an attempt until it has ended one way or the other; returns the hash and the size."""
        saved = time.monotonic()
        try:
            attempt.start()
            while not attempt.ended(timeout=_TICK_SECONDS):
                attempt.add_workers()
                attempt.limit_by_header()
                if time.monotonic() - saved >= _SAVE_SECONDS:
                    attempt.save()
                    saved = time.monotonic()
            digest, total = attempt.result()
            self._partial.truncate(total)
        except (StaleError, MalformedGGUFError):
            attempt.stop()
            raise
        except BaseException:
            attempt.stop()
            attempt.save()
            raise
        else:
            attempt.stop()
            attempt.save()
            return digest, total
        finally:
            attempt.close()
