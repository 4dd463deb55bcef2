"""Writing the body of an answer into the partial."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tea_models.errors import MalformedGGUFError, SizeMismatchError, TeaModelsError
from tea_models.net.answers import StaleError, TransientError, explain_failure

if TYPE_CHECKING:
    import httpx2

    from tea_models.net.attempt import Attempt
    from tea_models.net.ranges import Part

_BUFFER: Final = 1 << 20
_BUFFER_SECONDS: Final = 0.25
_MAX_PIECES: Final = 256


class Writer:
    """Writes the body of one answer into the partial, in pieces that are big or late enough.

    Args:
        attempt: Whose part it is.
        part: Where the body belongs.
        whole: The body is that of the whole file, so that it must not be longer.
    """

    def __init__(self, attempt: Attempt, part: Part, *, whole: bool) -> None:
        self._attempt, self._part, self._whole = attempt, part, whole
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._flushed = self._window_began = time.monotonic()
        self._window_bytes = 0

    def drain(self, response: httpx2.Response) -> None:
        """Read the body to its end, or to that of the part.

        Raises:
            TransientError: The connection broke, or is too slow.
            SizeMismatchError: The body is longer than the file should be.
            MalformedGGUFError: It does not begin as it should.
            DiskFullError: No space is left.
        """
        part = self._part
        try:
            for piece in response.iter_raw():
                if not self._take(piece):
                    return
        except (TransientError, TeaModelsError, StaleError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - told apart in one place
            self._flush()
            if part.left == 0 or self._attempt.stopping:
                return
            raise explain_failure(error, self._attempt.request.shown) from None
        self._flush()
        self._attempt.body_ended(part)

    def _take(self, piece: bytes) -> bool:
        now = time.monotonic()
        self._pieces.append(piece)
        self._waiting += len(piece)
        self._window_bytes += len(piece)
        full = self._waiting >= min(_BUFFER, max(1, self._part.left)) or len(self._pieces) >= _MAX_PIECES
        if (full or now - self._flushed >= _BUFFER_SECONDS) and not self._flush():
            return False
        policy = self._attempt.request.policy
        if now - self._window_began >= policy.stall_seconds:
            rate = self._window_bytes / (now - self._window_began)
            if rate < policy.min_rate:
                self._flush()
                raise TransientError(f"only {rate:.0f} bytes a second", silent=True)
            self._window_began, self._window_bytes = now, 0
        return not self._attempt.stopping

    def _flush(self) -> bool:
        """Write what waits; whether the part goes on."""
        self._flushed = time.monotonic()
        if not self._waiting:
            return self._part.left > 0 or self._to_the_end()
        if self._attempt.stopping:
            return False  # the file may have been begun anew by now, for others
        pieces, count = self._pieces, self._waiting
        self._pieces, self._waiting = [], 0
        left = self._part.left
        if count > left:
            if self._to_the_end():
                expected = self._part.end
                hint = "the source has another file, or sends without end; nothing was kept"
                shown = self._attempt.request.shown
                raise SizeMismatchError(shown, expected=expected, actual=expected + count - left, hint=hint)
            pieces, count = [b"".join(pieces)[:left]], left
        if self._part.position == 0:
            self._check_beginning(pieces)
        if self._part.position + count > self._attempt.limit:
            raise SizeMismatchError(
                self._attempt.request.shown,
                expected=self._attempt.limit,
                actual=self._part.position + count,
                hint="the server does not say how big the file is, and sends more than its header or the disk allows",
            )
        self._attempt.partial.write(pieces, self._part.position)
        return self._attempt.wrote(self._part, count) or self._to_the_end()

    def _to_the_end(self) -> bool:
        """Whether nothing may come after this part: then the body is read on, to see that it ends."""
        return self._whole and self._part.end == self._attempt.total

    def _check_beginning(self, pieces: list[bytes]) -> None:
        request = self._attempt.request
        start = b"".join(pieces[:64])[:64]
        if request.expect_gguf and not b"GGUF".startswith(start[:4]):
            shown = start.decode("latin-1").split("\n", 1)[0][:40]
            page = start.lstrip()[:1] == b"<"
            raise MalformedGGUFError(
                request.shown,
                offset=0,
                problem=f"expected 'GGUF', the answer begins with {shown!r}",
                hint="this is a web page: a login, a licence or an error; open the address in a browser"
                if page
                else "the address leads to some other kind of file",
            )
