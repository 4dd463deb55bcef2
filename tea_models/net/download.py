"""One verified download into a partial file.

    download ──► Attempt ──► workers: take a part, ask for it, judge the answer, write what comes; wait and try again
                        └──► hasher

An attempt that finds that the partial and the server don't fit (`StaleError`), or whose bytes have the wrong hash
though a clean download may have the right one, is followed by another from zero.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

from tea_models.disk.operations import remove_partial
from tea_models.errors import ChecksumMismatchError, MalformedGGUFError, SizeMismatchError, SourceUnavailableError
from tea_models.files import Fetched
from tea_models.net.answers import StaleError
from tea_models.net.attempt import Attempt
from tea_models.net.client import Request
from tea_models.net.partial import Beginning, PartialFile, State, fingerprint
from tea_models.net.ranges import Ranges
from tea_models.progress import Progress

_STALE_LIMIT: Final = 3


def download(request: Request, destination_partial: Path, progress: Progress | None = None) -> Fetched:
    """Download into `destination_partial`, going on where an earlier run stopped; never renames it.

    The size and hash of the request, where they are known, are checked; without a hash, a model is checked by its
    header. The partial is kept when the download is interrupted, removed when it is proved wrong (`IntegrityError`);
    one process at a time may use it.
    """
    with closing(PartialFile(destination_partial)) as partial:
        try:
            return _attempt(request, partial, progress or Progress())
        except BaseException as error:
            if isinstance(error, ChecksumMismatchError | MalformedGGUFError) or partial.size() == 0:
                remove_partial(destination_partial)
            raise


def _attempt(request: Request, partial: PartialFile, progress: Progress) -> Fetched:
    stale = 0
    plain = mistrusted = False
    while True:
        state = None if stale or mistrusted else _usable_state(request, partial)
        if state is None:
            partial.forget()
        resumed = sum(end - start for start, end in state.ranges) if state else 0
        attempt = Attempt(request, partial, state, progress, plain=plain)
        try:
            digest, total = attempt.run()
        except StaleError as error:
            stale += 1
            plain = plain or error.plain or stale > 1
            if stale > _STALE_LIMIT:
                hint = "try later, or another source"
                raise SourceUnavailableError(f"{error.reason}, again and again", hint=hint) from None
            continue
        if request.sha256 in (None, digest):
            _check_whole(request, partial, total)
            return Fetched(digest, total, resumed or None)
        if mistrusted or not (resumed or attempt.reconnected):
            hint = "nothing was kept; the source has another file, or something on the way alters it"
            raise ChecksumMismatchError(request.shown, expected=str(request.sha256), actual=digest, hint=hint)
        # Pieces of two files, or a leftover that was damaged: once more, from one answer.
        mistrusted = plain = True


def _check_whole(request: Request, partial: PartialFile, total: int) -> None:
    """Without a pin and a length, a model that was cut short can be told by its header only."""
    if request.sha256 is not None or request.size_by_header is None:
        return
    needed = request.size_by_header(Beginning(partial, total))
    if needed is not None and total < needed:
        partial.forget()
        hint = "by its own header the model is bigger: something cut it short; nothing was kept"
        raise SizeMismatchError(request.shown, expected=needed, actual=total, hint=hint)


def _usable_state(request: Request, partial: PartialFile) -> State | None:
    """The state of an earlier run, if its bytes can be a part of what is wanted now."""
    state = partial.load()
    if state is None or not state.ranges or (request.size is not None and state.total not in (None, request.size)):
        return None
    if state.sha256 != request.sha256:
        return None
    if request.sha256 is not None:
        return state  # from whichever address: the hash decides in the end
    if state.source != fingerprint(request.shown) or not (state.etag or state.last_modified):
        return None
    # Nothing proves bytes beyond those that were hashed; without a pin they are fetched again.
    return replace(state, ranges=tuple(Ranges(state.ranges).clipped(state.checked[0])))
