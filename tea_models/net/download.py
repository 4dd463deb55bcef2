"""One verified download into a partial file.

    download ──► _Download: attempts, each with a Board of parts, some workers (one connection each), and a hasher
                   Worker: take a part, ask for it, judge the answer, write what comes; on trouble wait and try again
                   here:   start more workers once the server has proved that it can, save the state, hear Ctrl-C

An attempt that finds that the partial and the server don't fit (`StaleError`), or whose bytes have the wrong hash
though a clean download may have the right one, is followed by another from zero.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tea_models.errors import (
    ChecksumMismatchError,
    MalformedGGUFError,
    SizeMismatchError,
    SourceUnavailableError,
)
from tea_models.files import Fetched
from tea_models.net.answers import StaleError
from tea_models.net.attempt import Attempt
from tea_models.net.partial import Beginning, PartialFile, State, discard, fingerprint
from tea_models.net.ranges import ENDLESS, Ranges
from tea_models.net.worker import Worker
from tea_models.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.net.request import Request

_STALE_LIMIT: Final = 3
_SAVE_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.1
_LEAVE_SECONDS: Final = 2.0
_FIRST_LOOK: Final = 1 << 20
# Vocabularies of a quarter of a million tokens make 10 MB; no header comes near this.
_LONGEST_HEADER: Final = 512 << 20
# What may follow the last tensor: padding to the alignment, and a little for whoever appends something.
_SLACK: Final = 1 << 20


def download(request: Request, destination_partial: Path, progress: Progress | None = None) -> Fetched:
    """Download into `destination_partial`, going on where an earlier run stopped; never renames it.

    Args:
        request: The file: `https:`; plain `http:` only for this machine itself or with a `sha256`. Its size and hash,
            where they are known, are checked; without a hash, what has a header is checked by it.
        destination_partial: Where the bytes go. Kept when the download is interrupted, removed when it is proved wrong.
            One process at a time may use it.
        progress: Told how far it is.

    Raises:
        IntegrityError: The bytes are not those that were expected; wrong ones are gone.
        SourceUnavailableError: The source did not deliver; what came is kept.
        MissingFileError: The source has no such file.
        AccessDeniedError: The source wants a token or an accepted licence.
        DiskFullError: The disk has no room for it.
        UsageError: The address may not be used.
        KeyboardInterrupt: The user stopped it; what came is kept.
    """
    partial = PartialFile(destination_partial)
    try:
        return _Download(request, partial, progress or Progress()).run()
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

    def run(self) -> Fetched:
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
                return Fetched(digest, total, resumed or None)
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
        if request.sha256 is not None or request.size_by_header is None:
            return
        needed = request.size_by_header(Beginning(self._partial, total))
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
        if state.source != fingerprint(request.shown) or not (state.etag or state.last_modified):
            return None
        # Nothing proves bytes beyond those that were hashed; without a pin they are fetched again.
        checked = Ranges(state.ranges).clipped(state.checked[0])
        return State(state.source, None, state.total, state.etag, state.last_modified, tuple(checked), state.checked)

    def _attend(self, attempt: Attempt) -> tuple[str, int]:
        """Watch an attempt until it has ended one way or the other; returns the hash and the size."""
        saved = time.monotonic()
        workers: list[Worker] = []
        look_at = _FIRST_LOOK
        keep = True
        try:
            attempt.start()
            while not attempt.ended(timeout=_TICK_SECONDS if workers else 0):
                while len(workers) < attempt.useful_workers:
                    workers.append(Worker(attempt))
                    workers[-1].start()
                arrived = attempt.unlimited
                if arrived is not None and arrived >= look_at:
                    look_at = self._limit_by_header(attempt, arrived)
                if time.monotonic() - saved >= _SAVE_SECONDS:
                    attempt.save()
                    saved = time.monotonic()
            digest, total = attempt.result()
            self._partial.truncate(total)
        except (StaleError, MalformedGGUFError):
            keep = False
            raise
        else:
            return digest, total
        finally:
            attempt.stop()
            deadline = time.monotonic() + _LEAVE_SECONDS
            for worker in workers:
                worker.join(max(0.0, deadline - time.monotonic()))
            if keep:
                attempt.save()
            attempt.close()

    def _limit_by_header(self, attempt: Attempt, arrived: int) -> int:
        """Where no server says how big a model is, its header does: it must not go on for ever.

        Returns:
            How many bytes must have arrived before it is worth to look again.
        """
        if self._request.size_by_header is None:
            return ENDLESS
        needed = self._request.size_by_header(Beginning(self._partial, arrived))
        if needed is None and arrived <= _LONGEST_HEADER:
            return 4 * arrived
        attempt.limit = min(attempt.limit, (arrived if needed is None else needed) + _SLACK)
        return ENDLESS
