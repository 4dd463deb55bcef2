"""One attempt at a download: threads, each with a connection, that take parts, ask for them and write what comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Final

from tea_models.disk.space import check_space, taken_by
from tea_models.errors import MalformedGGUFError, SizeMismatchError, SourceUnavailableError
from tea_models.gguf.magic import MAGIC, foreign
from tea_models.net.answers import Answer, StaleError, Version
from tea_models.net.client import Request, chunks, cut
from tea_models.net.frontier import FrontierHasher
from tea_models.net.partial import Beginning, PartialFile, State, fingerprint
from tea_models.net.ranges import ENDLESS, SMALLEST_PART, Board, Part, Ranges
from tea_models.net.retry import Retries, TransientError
from tea_models.progress import Progress

if TYPE_CHECKING:
    import httpx2


# Bytes a second of the first connection above which it stays alone, and how long it is watched first.
_FAST_RATE: Final = 200e6
_JUDGED_SECONDS: Final = 0.08
# Less than that is no progress: a server that drops every connection after some bytes is not tried for ever.
_PROGRESS: Final = 16 << 10
_SAVE_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.1
_LEAVE_SECONDS: Final = 2.0
_FIRST_LOOK: Final = 1 << 20
# Vocabularies of a quarter of a million tokens make 10 MB; no header comes near this.
_LONGEST_HEADER: Final = 512 << 20
# What may follow the last tensor: padding to the alignment, and a little for whoever appends something.
_SLACK: Final = 1 << 20


class Attempt:
    """Bytes on their way into a partial that has what `state` says; `plain`: of the whole file, over one connection."""

    def __init__(
        self, request: Request, partial: PartialFile, state: State | None, progress: Progress, *, plain: bool
    ) -> None:
        self._request, self._partial, self._progress, self._plain = request, partial, progress, plain
        total = request.size if request.size is not None else state.total if state else None
        self._connections = 1 if plain else request.connections
        self._board = Board(Ranges(state.ranges if state else ()), total, self._connections)
        self._version = Version(state.etag, state.last_modified) if state else Version()
        self._resumed = self._board.done.total
        self._ranges_proved = False
        self._answered_at = 0.0
        self._limit = ENDLESS  # where a file of unknown size must end, by its own header
        self._look_at = _FIRST_LOOK if request.size_by_header else ENDLESS
        self.reconnected = False
        self._trouble = "the connection broke"
        self._changed = threading.Condition()
        self._working = 0
        self._streams: dict[Part, httpx2.Response] = {}
        self._unproved: set[Part] = set()  # bodies that may be longer than the file should be, and only their end tells
        self._failure: BaseException | None = None
        self._stopping = False
        self._showing = False
        self._hasher = FrontierHasher(partial, state.checked if state else (0, ""), self._fail)

    # -- the thread that attends -------------------------------------------------------------------------------------

    def run(self) -> tuple[str, int]:
        """Fetch and hash all; returns the hash and the size. `StaleError`: begin anew; else what came is remembered."""
        saved = time.monotonic()
        workers: list[threading.Thread] = []
        keep = True
        try:
            if self._board.total is not None:
                self._know_total(self._board.total)
            self._hasher.follow(self._board.done.frontier())
            while not self._ended(_TICK_SECONDS if workers else 0):
                while len(workers) < self._useful_workers():
                    workers.append(threading.Thread(target=self._work, name="download", daemon=True))
                    self._working += 1
                    workers[-1].start()
                self._limit_by_header()
                if time.monotonic() - saved >= _SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
            if self._failure is not None:
                raise self._failure
            digest, total = self._hasher.checkpoint[1], self._board.total
            assert total is not None
            self._partial.truncate(total)
        except (StaleError, MalformedGGUFError):
            keep = False
            raise
        else:
            return digest, total
        finally:
            self._stop(workers)
            if keep:
                self._save()
            with self._changed:
                if self._showing:
                    self._showing = False
                    self._progress.finish()

    def _useful_workers(self) -> int:
        """How many can help: one finds out what the server can do, the others follow if that turns out well."""
        with self._changed:
            total, done = self._board.total, self._board.done.total
            if self._board.complete:
                return 0
            elapsed = time.monotonic() - self._answered_at
            # More connections help only where one does not bring as much as this process can take in.
            slow = elapsed >= _JUDGED_SECONDS and (done - self._resumed) / elapsed < _FAST_RATE
            if total is None or not self._ranges_proved or self._over or not slow:
                return 1
            return min(self._connections, 1 + (total - done) // SMALLEST_PART)

    def _limit_by_header(self) -> None:
        """Where no server says how big a model is, its header does: it must not go on for ever."""
        with self._changed:
            arrived = self._board.done.frontier()
            if self._board.total is not None or arrived < self._look_at:
                return
        assert self._request.size_by_header is not None
        needed = self._request.size_by_header(Beginning(self._partial, arrived))
        if needed is None and arrived <= _LONGEST_HEADER:
            self._look_at = 4 * arrived
        else:
            self._look_at = ENDLESS
            self._limit = (arrived if needed is None else needed) + _SLACK

    def _ended(self, timeout: float) -> bool:
        """Wait a moment; whether all bytes are there and hashed, or something went wrong."""
        board = self._board
        with self._changed:
            over = self._changed.wait_for(
                lambda: self._failure is not None or (board.complete and not self._unproved), timeout
            )
        if self._failure is not None:
            return True
        return over and board.total is not None and self._hasher.wait(board.total, timeout)

    def _save(self) -> None:
        request, version = self._request, self._version
        with self._changed:
            checked, ranges = self._hasher.checked, tuple(self._board.done)
            source = fingerprint(request.shown)
            state = State(
                source, request.sha256, self._board.total, version.etag, version.last_modified, ranges, checked
            )
        if ranges:
            self._partial.save(state)

    def _stop(self, workers: list[threading.Thread]) -> None:
        """Make all threads end; those that wait for bytes are woken by closing their connections."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            for response in self._streams.values():
                cut(response)
        self._hasher.stop()
        deadline = time.monotonic() + _LEAVE_SECONDS
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    # -- the workers -------------------------------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        return self._stopping or self._failure is not None

    def _work(self) -> None:
        """Take parts; whatever goes wrong is raised by the thread that attends."""
        try:
            self._take_parts(Retries(self._request.policy, self._request.shown))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that attends, which raises it
            self._fail(error)
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if not self._over:
                self._failure = error
            self._changed.notify_all()

    def _take_parts(self, retries: Retries) -> None:
        rate = 0.0
        while (part := self._next_part(rate)) is not None:
            trouble: TransientError | None = None
            try:
                self._fetch(part, retries)
            except TransientError as error:
                trouble = error
            # After any other error the part stays taken: nobody may think meanwhile that the file is complete.
            with self._changed:
                self._board.give_back(part)
                self._unproved.discard(part)
                self._changed.notify_all()
                if trouble is None:
                    retries.failures, rate = 0, part.rate(time.monotonic())
                elif part.left:  # else another worker took over what was left
                    retries.count(trouble, progress=part.got >= _PROGRESS)
                    self.reconnected, self._trouble = True, trouble.reason
                    if self._working > 1 and (retries.failures > 1 or trouble.busy):
                        return  # too many connections for this server, or for something on the way
                    self._pause(retries, trouble)

    def _next_part(self, rate: float) -> Part | None:
        """A part to fetch; waits while others may still give one up; None when there is nothing to do."""
        with self._changed:
            while not self._over and not self._board.complete:
                part = self._board.take(silent_seconds=self._request.policy.silent_seconds, rate=rate)
                if part is not None:
                    for taken, response in self._streams.items():
                        if not taken.left:
                            cut(response)  # wakes a connection whose part was taken over
                    return part
                self._changed.wait(0.5)
        return None

    def _pause(self, retries: Retries, trouble: TransientError) -> None:
        """Wait before the next try; under the lock, which is given back meanwhile."""
        done = self._board.done.total
        hint = "what has arrived is kept; run the command again later to go on" if done else ""
        patient = done - self._resumed >= self._request.policy.patient_bytes
        seconds = retries.wait(trouble, patient=patient, hint=hint)
        self._changed.wait_for(lambda: self._over or self._board.complete, seconds)

    def _fetch(self, part: Part, retries: Retries) -> None:
        end, ranged, if_range = self._asks_for(part)
        response, answer = self._request.send(part.position, end, ranged=ranged, if_range=if_range)
        retries.answered = True
        with closing(response):
            try:
                with self._changed:
                    part.heard = part.began = time.monotonic()
                    self._answered_at = self._answered_at or part.began
                    self._learn(part, answer, asked=ranged)
                    self._streams[part] = response
                self._write_body(response, part, whole=not answer.partial)
            finally:
                with self._changed:
                    self._streams.pop(part, None)
        # A 206 may be shorter than what was asked for; then the rest is asked for like any other part.
        if part.left and not self._over and not (answer.partial and part.position == answer.end and part.got):
            raise TransientError("the answer ended too early")

    def _asks_for(self, part: Part) -> tuple[int | None, bool, str]:
        """How to ask for a part: its end (None for that of the file), whether by `Range`, and for `If-Range`."""
        whole = part.end in (ENDLESS, self._board.total)
        if self._plain and part.position:
            raise StaleError(f"{self._request.shown}: {self._trouble}, and the server can't go on", plain=True)
        if self._plain or (whole and not part.position):
            return None, False, ""
        # With a pin, the bytes of any mirror are welcome and the hash decides; without one, only of the same version.
        return None if whole else part.end, True, "" if self._request.sha256 else self._version.validator

    def _learn(self, part: Part, answer: Answer, *, asked: bool) -> None:
        """Compare an answer with what is known; under the lock. `asked`: by `Range`."""
        request = self._request
        if answer.html and self._resumed:
            raise SourceUnavailableError(
                f"{request.shown}: the server sends a web page instead of the rest of the file",
                hint="a login of the network, perhaps; what has arrived is kept: run the command again later",
            )
        if request.size is not None and not answer.partial and answer.total not in (None, request.size):
            hint = "the source has another file"
            if answer.html:
                hint = "the server sends a web page: a login, a licence or an error; open the address in a browser"
            raise SizeMismatchError(request.shown, expected=request.size, actual=answer.total or 0, hint=hint)
        if not self._version.accept(answer) and request.sha256 is None:
            raise StaleError(f"{request.shown}: the file changed meanwhile", plain=False)
        if asked and not answer.partial and part.position:
            raise StaleError(f"{request.shown}: the server does not continue files", plain=True)
        self._learn_total(answer)
        if not answer.partial and not (answer.ranges and self._connections > 1):
            self._board.only(part)
            self._connections = 1
        if answer.end is None and request.sha256 is None:
            self._unproved.add(part)
        self._ranges_proved = self._ranges_proved or (answer.ranges and not self._plain)

    def _learn_total(self, answer: Answer) -> None:
        known = self._board.total
        if answer.total is not None and known is None:
            self._board.learn_total(answer.total)
            self._know_total(answer.total)
        elif answer.total is not None and answer.total != known:
            raise StaleError(f"{self._request.shown}: the size of the file changes", plain=answer.partial)
        elif known is None:
            if answer.partial:
                raise StaleError(f"{self._request.shown}: the server does not say how big the file is", plain=True)
            self._partial.limit_to_disk()
            self._show(None)

    def _know_total(self, total: int) -> None:
        """Called once the size is known; under the lock, or before there are threads."""
        check_space(self._partial.path.parent, total - taken_by(self._partial.path), self._request.shown)
        self._show(total)

    def _show(self, total: int | None) -> None:
        if not self._showing:
            self._showing = True
            self._progress.start(self._request.name, total, self._resumed)

    def _write_body(self, response: httpx2.Response, part: Part, *, whole: bool) -> None:
        """Write a body into its part, while it goes on; what comes after the file's end is refused."""
        try:
            for piece in self._watched(chunks(response, self._request.shown)):
                last = whole and part.end == self._board.total
                # After a part that must be the file's end, the body is read on, to see that it ends.
                if self._over or not (self._write(part, piece, last=last) or last):
                    return
        except TransientError:
            if part.left and not self._over:
                raise
            return
        with self._changed:
            if self._board.total is None:  # the end of a body without a length is that of the file
                part.end = part.position
                self._board.learn_total(part.position)
                self._changed.notify_all()

    def _watched(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """What comes, for as long as it comes fast enough."""
        policy, size, began = self._request.policy, 0, time.monotonic()
        for piece in pieces:
            yield piece
            size, elapsed = size + len(piece), time.monotonic() - began
            if elapsed >= policy.stall_seconds:
                if size / elapsed < policy.min_rate:
                    raise TransientError(f"only {size / elapsed:.0f} bytes a second", silent=True)
                size, began = 0, began + elapsed

    def _write(self, part: Part, piece: bytes, *, last: bool) -> bool:
        """Write what came; whether the part goes on. `last`: it is the end of the file."""
        request, count, left = self._request, len(piece), part.left
        if count > left:
            if last:
                hint = "the source has another file, or sends without end; nothing was kept"
                actual = part.end + count - left
                raise SizeMismatchError(request.shown, expected=part.end, actual=actual, hint=hint)
            piece, count = piece[:left], left
        model = request.size_by_header is not None and request.sha256 is None
        if model and part.position == 0 and not MAGIC.startswith(piece[:4]):
            raise foreign(piece[:512], request.shown)
        if part.position + count > self._limit:
            hint = "the server does not say how big the file is, and sends more than its header allows"
            raise SizeMismatchError(request.shown, expected=self._limit, actual=part.position + count, hint=hint)
        self._partial.write(piece, part.position)
        with self._changed:
            new = self._board.done.add(part.position, part.position + count)
            part.position += count
            part.got += count
            part.heard = time.monotonic()
            if new and self._showing:
                self._progress.advance(new)
            self._hasher.follow(self._board.done.frontier())
            if self._board.complete:
                self._changed.notify_all()
            return part.left > 0 and not self._over
