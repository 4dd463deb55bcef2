"""One connection of a download: takes parts, asks for them, and writes what comes."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from tea_models.errors import MalformedGGUFError, SizeMismatchError
from tea_models.net.batches import batches
from tea_models.net.client import chunks
from tea_models.net.partial import disk_full
from tea_models.net.retry import Retries, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tea_models.net.attempt import Attempt
    from tea_models.net.ranges import Part

# Less than that is no progress: a server that drops every connection after some bytes is not tried for ever.
_PROGRESS: Final = 16 << 10


class Worker(threading.Thread):
    """Works until there is nothing left to fetch, or it is of no use.

    Args:
        attempt: What is shared with the other workers.
    """

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(name="download", daemon=True)
        self._attempt, self._request = attempt, attempt.request
        self._retries = Retries(self._request.policy, self._request.shown)
        attempt.enter()

    def run(self) -> None:
        """Take parts; whatever goes wrong is raised by the thread that attends."""
        try:
            self._take_parts()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that attends, which raises it
            self._attempt.fail(error)
        finally:
            self._attempt.leave()

    def _take_parts(self) -> None:
        attempt, retries, rate = self._attempt, self._retries, 0.0
        while (part := attempt.next_part(rate)) is not None:
            trouble: TransientError | None = None
            try:
                self._fetch(part)
            except TransientError as error:
                trouble = error
            # After any other error the part stays taken: nobody may think meanwhile that the file is complete.
            attempt.give_back(part)
            if trouble is None:
                retries.failures, rate = 0, part.rate(time.monotonic())
                continue
            if not part.left:
                continue  # another worker took over what was left
            retries.count(trouble, progress=part.got >= _PROGRESS)
            if attempt.can_spare_worker(retries.failures, trouble):
                return
            hint = "what has arrived is kept; run the command again later to go on" if attempt.arrived else ""
            attempt.pause(retries.wait(trouble, patient=attempt.has_brought_much, hint=hint))

    def _fetch(self, part: Part) -> None:
        """Ask for a part and write what comes."""
        attempt = self._attempt
        end, ranged, if_range = attempt.asks_for(part)
        response, answer = self._request.send(part.position, end, ranged=ranged, if_range=if_range)
        self._retries.answered = True
        with closing(response):
            try:
                attempt.opened(part, response, answer, asked=ranged)
                pieces = chunks(response, self._request.shown)
                if self._write_all(batches(pieces, part, self._request.policy), part, whole=not answer.partial):
                    attempt.body_ended(part)
            finally:
                attempt.closed(part)
        # A 206 may be shorter than what was asked for; then the rest is asked for like any other part.
        if part.left and not attempt.stopping and not (answer.partial and part.position == answer.end and part.got):
            raise TransientError("the answer ended too early")

    def _write_all(self, body: Iterator[list[bytes]], part: Part, *, whole: bool) -> bool:
        """Write a body into its part; whether it was read to its end.

        Raises:
            TransientError: The connection broke, or is too slow.
            SizeMismatchError: The body is longer than the file should be.
            MalformedGGUFError: It does not begin as it should.
            DiskFullError: No space is left.
        """
        attempt = self._attempt
        try:
            for pieces in body:
                # After a part that must be the file's end, the body is read on, to see that it ends.
                if attempt.stopping or not (self._write(part, pieces, whole=whole) or self._is_last(part, whole)):
                    return False
        except TransientError:
            if part.left and not attempt.stopping:
                raise
            return False
        return True

    def _write(self, part: Part, pieces: list[bytes], *, whole: bool) -> bool:
        """Write a batch; whether the part goes on."""
        attempt, count, left = self._attempt, sum(map(len, pieces)), part.left
        if count > left:
            if self._is_last(part, whole):
                hint = "the source has another file, or sends without end; nothing was kept"
                actual = part.end + count - left
                raise SizeMismatchError(self._request.shown, expected=part.end, actual=actual, hint=hint)
            pieces, count = [b"".join(pieces)[:left]], left
        if part.position == 0 and self._request.size_by_header is not None and self._request.sha256 is None:
            self._check_magic(b"".join(pieces[:64])[:64])
        if part.position + count > attempt.room:
            raise disk_full(attempt.partial.path)
        if part.position + count > attempt.limit:
            raise SizeMismatchError(
                self._request.shown,
                expected=attempt.limit,
                actual=part.position + count,
                hint="the server does not say how big the file is, and sends more than its header allows",
            )
        attempt.partial.write(pieces, part.position)
        return attempt.wrote(part, count)

    def _is_last(self, part: Part, whole: bool) -> bool:
        return whole and part.end == self._attempt.total

    def _check_magic(self, start: bytes) -> None:
        if b"GGUF".startswith(start[:4]):
            return
        shown = start.decode("latin-1").split("\n", 1)[0][:40]
        raise MalformedGGUFError(
            self._request.shown,
            offset=0,
            problem=f"expected 'GGUF', the answer begins with {shown!r}",
            hint="this is a web page: a login, a licence or an error; open the address in a browser"
            if start.lstrip()[:1] == b"<"
            else "the address leads to some other kind of file",
        )
