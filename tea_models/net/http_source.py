"""The beginning of a remote file, over HTTP ranges: a few MB of a model of many GB.

A header is a prefix of its file, so what was fetched is one growing prefix. A server that knows no ranges is read as a
stream that is broken off as soon as the header is complete.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from tea_models.errors import AccessDeniedError, MissingFileError, SourceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx2

FIRST_WINDOW = 1 << 20
LARGEST_WINDOW = 8 << 20
MAX_PREFIX = 128 << 20  # no real header comes near; a hostile one must not make us fetch the weights
MAX_SECONDS = 120.0
ATTEMPTS = 4
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 10.0
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,18})\Z")


class HttpSource:
    """A remote file as a byte source.

    Args:
        url: Its address.
        client: Made by `transfer.make_client`; closed with the source.
        headers: Credentials, for the origin of `url` only.
        name: What the file is called in messages; the address without its query by default.

    Attributes:
        size: Bytes of the file, or None where the server does not say.
        bytes_read: Bytes that were fetched.
        requests: Requests that were sent (redirects not counted).
        ranges: Whether the server knows ranges; None before the first answer.

    Raises:
        AccessDeniedError: The server wants a token or an accepted licence.
        MissingFileError: There is no such file.
        SourceUnavailableError: It can't be reached, or does not keep to HTTP.
    """

    def __init__(self, url: str, *, client: httpx2.Client, headers: Mapping[str, str], name: str = "") -> None:
        from tea_models.net import display_url

        self.name = name or display_url(url)
        self.size: int | None = None
        self.bytes_read = 0
        self.requests = 0
        self.ranges: bool | None = None
        self._url = url
        self._client = client
        self._headers = dict(headers)
        self._prefix = bytearray()
        self._window = FIRST_WINDOW
        self._validator: str | None = None
        self._response: httpx2.Response | None = None
        self._chunks: Iterator[bytes] | None = None
        self._deadline = 0.0
        self._failures = 0
        self._stop = 0
        try:
            self._extend(1)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset`, or fewer at the end; fetches what is not there yet.

        Raises:
            SourceUnavailableError: The server does not deliver, or the header is longer than any real one.
        """
        end = offset + length
        if self.size is not None:
            end = min(end, self.size)
        if end > len(self._prefix):
            self._extend(end)
        return bytes(self._prefix[offset:end])

    def close(self) -> None:
        """Break off what is under way and close the client."""
        if self._response is not None:
            self._response.close()
            self._response = self._chunks = None
        self._client.close()

    def _extend(self, end: int) -> None:
        """Make the prefix at least `end` bytes long, or as long as the file."""
        if end > MAX_PREFIX:
            raise self._unavailable(
                f"its header is longer than {MAX_PREFIX >> 20} MiB", "no real model has such a header"
            )
        self._deadline = time.monotonic() + MAX_SECONDS
        self._failures = 0
        while len(self._prefix) < end and (self.size is None or len(self._prefix) < self.size):
            before = len(self._prefix)
            wait = self._fetch(end)
            if time.monotonic() > self._deadline and len(self._prefix) < end:
                raise self._unavailable(f"no header after {MAX_SECONDS:.0f} s", "the connection is too slow")
            if len(self._prefix) > before and wait is None:
                continue
            if self.size is not None and len(self._prefix) >= self.size:
                break
            self._failures += 1
            if self._failures >= ATTEMPTS:
                raise self._unavailable("the server does not deliver what was asked for", "try again later")
            time.sleep(min(wait if wait is not None else 0.2 * self._failures, _LONGEST_WAIT))

    def _fetch(self, end: int) -> float | None:
        """Fetch once; the seconds to wait before another try after a failure, None otherwise."""
        import httpx2

        try:
            if self._chunks is None:
                wait = self._ask(end)
                if wait is not None or self._chunks is None:
                    return wait
            self._drain(end)
        except httpx2.InvalidURL as error:
            raise self._unavailable(f"not a valid address: {error}", "") from None
        except httpx2.HTTPError as error:
            self._drop()
            if not self.ranges:
                self._prefix.clear()  # a stream can't go on where it broke
            if self._failures + 1 >= ATTEMPTS:
                problem = str(error) or type(error).__name__
                raise self._unavailable(f"can't be reached ({problem})", "check the address and the network") from None
            return 0.2 * (self._failures + 1)
        return None

    def _ask(self, end: int) -> float | None:
        """Send a request for the next window and check the answer."""
        from tea_models.net import open_stream

        start = len(self._prefix)
        self._stop = max(end, start + self._window)
        if self.size is not None:
            self._stop = min(self._stop, self.size)
        self.requests += 1
        headers = {**self._headers, "Range": f"bytes={start}-{self._stop - 1}", "Accept-Encoding": "identity"}
        response = open_stream(self._client, self._url, headers)
        self._response = response
        status = response.status_code
        if status == 206:
            self._check_range(response, start)
            self._window = min(self._window * 2, LARGEST_WINDOW)
        elif status == 200:
            self._accept_whole(response)
        elif status == 416:
            found = _UNSATISFIED.match(response.headers.get("content-range", ""))
            self._drop()
            self.size = int(found[1]) if found else start
            return None
        else:
            retry_after = response.headers.get("retry-after", "")
            self._drop()
            if status in _RETRIED and self._failures + 1 < ATTEMPTS:
                asked = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 9 else None
                return asked if asked is not None else 0.5 * (self._failures + 1)
            raise self._refused(status)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise self._unavailable(f"the server answers with {encoding[:20]} compression", "try another source")
        self._chunks = response.iter_raw()
        return None

    def _check_range(self, response: httpx2.Response, start: int) -> None:
        stated = response.headers.get("content-range", "")
        found = _CONTENT_RANGE.match(stated)
        if not found or int(found[1]) != start or int(found[2]) < start:
            raise self._unavailable(
                f"asked for bytes from {start:,}, the server answered {stated[:60]!r}", "try another source"
            )
        total = int(found[3]) if found[3] != "*" else None
        if total is not None and self.size not in (None, total):
            raise self._unavailable("the file changed while it was read", "run the command again")
        self._check_unchanged(response)
        self.size = total if total is not None else self.size
        self.ranges = True

    def _accept_whole(self, response: httpx2.Response) -> None:
        """An answer with the whole file: the server knows no ranges (or stopped to)."""
        if self._prefix:
            if self.ranges:
                raise self._unavailable("the server stopped answering ranges", "run the command again")
            self._prefix.clear()
        self.ranges = False
        length = response.headers.get("content-length", "")
        self.size = int(length) if length.isdecimal() and len(length) < 19 else None

    def _check_unchanged(self, response: httpx2.Response) -> None:
        validator = response.headers.get("etag") or response.headers.get("last-modified")
        if self._validator is not None and validator != self._validator:
            raise self._unavailable("the file changed while it was read", "run the command again")
        self._validator = validator

    def _drain(self, end: int) -> None:
        """Take what comes: a range to its end, of a whole file only what is needed now."""
        assert self._chunks is not None
        limit = self._stop if self.ranges else (MAX_PREFIX if self.size is None else self.size)
        for chunk in self._chunks:
            self.bytes_read += len(chunk)
            self._prefix += chunk[: max(0, limit - len(self._prefix))]
            if len(self._prefix) >= (limit if self.ranges else min(limit, end)):
                break
            if time.monotonic() > self._deadline:
                return
        else:
            self._drop()
            if not self.ranges:
                self.size = len(self._prefix)
            return
        if self.ranges:
            self._drop()

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = self._chunks = None

    def _refused(self, status: int) -> AccessDeniedError | MissingFileError | SourceUnavailableError:
        if status in (401, 403):
            return AccessDeniedError(
                f"{self.name}: the server answered {status}",
                hint="it wants a token (HF_TOKEN), or a licence to be accepted on the model's page",
            )
        if status in (404, 410):
            return MissingFileError(f"{self.name}: no such file (the server answered {status})", hint="check the name")
        return self._unavailable(f"the server answered {status}", "try again later, or another source")

    def _unavailable(self, problem: str, hint: str) -> SourceUnavailableError:
        return SourceUnavailableError(f"{self.name}: {problem}", hint=hint)
