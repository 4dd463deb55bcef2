"""The beginning of a remote file, over HTTP ranges: a few MB of a model of many GB.

A header is a prefix of its file, so what was fetched is one growing prefix. A server that knows no ranges is read as a
stream that is broken off as soon as the header is complete.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tea_models.errors import SourceUnavailableError
from tea_models.net.answers import StaleError, Version
from tea_models.net.client import Request, chunks
from tea_models.net.retry import Retries, TransientError

if TYPE_CHECKING:
    import httpx2


FIRST_WINDOW: Final = 1 << 20
LARGEST_WINDOW: Final = 8 << 20
MAX_PREFIX: Final = 128 << 20  # no real header comes near; a hostile one must not make us fetch the weights
MAX_SECONDS: Final = 120.0


class HttpSource:
    """A remote file as a byte source; the request's client is closed with it."""

    def __init__(self, request: Request) -> None:
        self.name = request.shown
        self.size: int | None = None  # where the server does not say
        self.bytes_read = 0
        self.requests = 0  # redirects not counted
        self._request = request
        self._prefix = bytearray()
        self._window = FIRST_WINDOW
        self._version = Version()
        self._plain = False  # ranges can't be relied on: the file is one stream
        self._response: httpx2.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._limit = 0  # where the body of the answer ends
        try:
            self._extend(1)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset`, or fewer at the end; fetches what is not there yet."""
        end = offset + length
        if self._lacks(end):
            self._extend(end)
        return bytes(self._prefix[offset:end])

    def close(self) -> None:
        self._break_off()
        self._request.client.close()

    def _lacks(self, end: int) -> bool:
        return len(self._prefix) < (end if self.size is None else min(end, self.size))

    def _extend(self, end: int) -> None:
        """Make the prefix at least `end` bytes long, or as long as the file."""
        if end > MAX_PREFIX:
            hint = "no real model has such a header"
            raise SourceUnavailableError(f"{self.name}: its header is longer than {MAX_PREFIX >> 20} MiB", hint=hint)
        deadline = time.monotonic() + MAX_SECONDS
        retries = Retries(self._request.policy, self.name)
        while self._lacks(end):
            before = len(self._prefix)
            try:
                self._fetch(end, deadline)
            except TransientError as trouble:
                self._break_off()
                retries.count(trouble, progress=len(self._prefix) > before and not self._plain)
                if self._plain:
                    self._prefix.clear()  # a stream can't go on where it broke
                time.sleep(retries.wait(trouble))
            except StaleError as error:
                self._break_off()
                if error.beyond_end and before and self.size is None:
                    self.size = before
                elif before or self._plain:
                    raise SourceUnavailableError(error.reason, hint="run the command again") from None
                self._plain = True
            if self._lacks(end) and time.monotonic() > deadline:
                hint = "the connection is too slow"
                raise SourceUnavailableError(f"{self.name}: no header after {MAX_SECONDS:.0f} s", hint=hint)

    def _fetch(self, end: int, deadline: float) -> None:
        """Take what comes: a range to its end, of a whole file only what is needed now."""
        if self._response is None:
            self._ask(end)
        before = len(self._prefix)
        for piece in self._pieces:
            self.bytes_read += len(piece)
            self._prefix += piece[: self._limit - len(self._prefix)]
            if len(self._prefix) >= (min(end, self._limit) if self._plain else self._limit):
                break
            if time.monotonic() > deadline:
                return
        else:
            if self._plain and self.size is None:
                self.size = len(self._prefix)
            elif self._plain or len(self._prefix) == before:
                raise TransientError("the answer ended too early")
        if not self._plain:
            self._break_off()

    def _ask(self, end: int) -> None:
        """Send a request for the next window and check the answer."""
        start = len(self._prefix)
        stop = max(end, start + self._window)
        self.requests += 1
        stop = stop if self.size is None else min(stop, self.size)
        response, answer = self._request.send(start, stop, ranged=not self._plain)
        self._response, self._pieces = response, chunks(response, self.name)
        changed = answer.total is not None and self.size not in (None, answer.total)
        # No hash will judge these bytes: a tag that comes or goes is another file as well.
        changed = changed or (start > 0 and answer.etag != self._version.etag)
        if changed or not self._version.accept(answer):
            raise StaleError(f"{self.name}: the file changed while it was read", plain=False)
        if start and not answer.partial:
            raise StaleError(f"{self.name}: the server stopped answering ranges", plain=False)
        self._plain = not answer.partial
        self.size = self.size if answer.total is None else answer.total
        self._limit = MAX_PREFIX if answer.end is None else answer.end
        self._window = min(self._window * 2, LARGEST_WINDOW)

    def _break_off(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response, self._pieces = None, iter(())
