"""One attempt at a download: what its workers, each with a connection, share."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from tea_models.disk.space import check_space
from tea_models.errors import SizeMismatchError, SourceUnavailableError
from tea_models.net.answers import Answer, StaleError, Version
from tea_models.net.client import cut
from tea_models.net.frontier import FrontierHasher
from tea_models.net.partial import PartialFile, State, fingerprint, room
from tea_models.net.ranges import ENDLESS, SMALLEST_PART, Board, Part, Ranges

if TYPE_CHECKING:
    import httpx2

    from tea_models.net.request import Request
    from tea_models.net.retry import TransientError
    from tea_models.progress import Progress

# Bytes a second of the first connection above which it stays alone, and how long it is watched first.
_FAST_RATE: Final = 200e6
_JUDGED_SECONDS: Final = 0.08


class Attempt:
    """Bytes on their way into a partial.

    Args:
        request: What is wanted.
        partial: Where it goes.
        state: What is there already, or None.
        progress: Told how far it is; `start` is called once the total is known.
        plain: Ask for the whole file, without ranges, over one connection.
    """

    def __init__(
        self, request: Request, partial: PartialFile, state: State | None, progress: Progress, *, plain: bool
    ) -> None:
        self.request, self.partial, self._progress, self._plain = request, partial, progress, plain
        total = request.size if request.size is not None else state.total if state else None
        self._connections = 1 if plain else request.connections
        self._board = Board(Ranges(state.ranges if state else ()), total, self._connections)
        self._version = Version(state.etag, state.last_modified) if state else Version()
        self._ranges_proved = False
        self._answered_at = 0.0
        self.limit = ENDLESS  # where a file of unknown size must end, by its own header
        self.room = ENDLESS  # and where the disk would be full
        self.reconnected = False
        self._trouble = "the connection broke"
        self._resumed = self._board.done.total
        self._changed = threading.Condition()
        self._working = 0
        self._streams: dict[Part, httpx2.Response] = {}
        self._unproved: set[Part] = set()  # bodies that may be longer than the file should be, and only their end tells
        self._failure: BaseException | None = None
        self._stopping = False
        self._showing = False
        self._hasher = FrontierHasher(partial, state.checked if state else (0, ""))

    # -- called by the thread that attends --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with what an earlier run left."""
        if self._board.total is not None:
            self._know_total(self._board.total)
        self._hasher.follow(self._board.done.frontier())

    @property
    def useful_workers(self) -> int:
        """How many can help: one finds out what the server can do, the others follow if that turns out well."""
        with self._changed:
            total = self._board.total
            if self._board.complete:
                return 0
            if total is None or not self._ranges_proved or self.stopping or not self._network_is_slow():
                return 1
            return min(self._connections, 1 + (total - self._board.done.total) // SMALLEST_PART)

    def _network_is_slow(self) -> bool:
        """Whether more connections could help: not where one brings as much as this process can take in."""
        elapsed = time.monotonic() - self._answered_at
        return elapsed >= _JUDGED_SECONDS and (self._board.done.total - self._resumed) / elapsed < _FAST_RATE

    @property
    def unlimited(self) -> int | None:
        """How many bytes at the beginning have arrived of a file whose size nobody says; None where it is known."""
        with self._changed:
            return self._board.done.frontier() if self._board.total is None else None

    def ended(self, timeout: float) -> bool:
        """Wait a moment; whether all bytes are there and hashed, or something went wrong."""
        with self._changed:
            board = self._board
            over = self._changed.wait_for(
                lambda: self._failure is not None or (board.complete and not self._unproved), timeout
            )
        if self._failure is not None or self._hasher.failed:
            return True
        return over and board.total is not None and self._hasher.wait(board.total, timeout)

    def result(self) -> tuple[str, int]:
        """The hash and size of the whole file.

        Raises:
            StaleError: Begin anew.
            TeaModelsError, OSError: What went wrong.
        """
        if self._failure is not None:
            raise self._failure
        if self._hasher.error is not None:
            raise self._hasher.error
        if self._hasher.foreign:
            raise StaleError(f"{self.request.shown}: what an earlier run left was damaged", plain=False)
        assert self._board.total is not None
        return self._hasher.checkpoint[1], self._board.total

    def save(self) -> None:
        """Remember how far it is."""
        request = self.request
        with self._changed:
            checked = self._hasher.checked
            state = State(
                source=fingerprint(request.shown),
                sha256=request.sha256,
                total=self._board.total,
                etag=self._version.etag,
                last_modified=self._version.last_modified,
                ranges=tuple(self._board.done),
                checked=checked,
            )
        if state.ranges:
            self.partial.save(state)

    def stop(self) -> None:
        """Make all threads end; those that wait for bytes are woken by closing their connections."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            for response in self._streams.values():
                cut(response)
        self._hasher.stop()

    def close(self) -> None:
        """End the progress."""
        with self._changed:
            if self._showing:
                self._showing = False
                self._progress.finish()

    # -- called by workers -------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Count one worker more."""
        with self._changed:
            self._working += 1
        self.partial.enter()

    def leave(self) -> None:
        """Count one worker less."""
        self.partial.leave()
        with self._changed:
            self._working -= 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the attempt for all."""
        with self._changed:
            if self._failure is None and not self._stopping:
                self._failure = error
            self._changed.notify_all()

    def next_part(self, rate: float) -> Part | None:
        """A part to fetch; waits while others may still give one up; None when there is nothing to do.

        Args:
            rate: Bytes a second that the asking worker has shown.
        """
        policy = self.request.policy
        with self._changed:
            while not self.stopping and not self._board.complete:
                part = self._board.take(silent_seconds=policy.silent_seconds, rate=rate)
                if part is not None:
                    for taken, response in self._streams.items():
                        if not taken.left:
                            cut(response)  # wakes a connection whose part was taken over
                    return part
                self._changed.wait(0.5)
        return None

    def give_back(self, part: Part) -> None:
        """Stop working on a part; what it lacks can be taken again."""
        with self._changed:
            self._board.give_back(part)
            self._unproved.discard(part)
            self._changed.notify_all()

    def can_spare_worker(self, failures: int, trouble: TransientError) -> bool:
        """Whether the others go on without a worker that has trouble."""
        with self._changed:
            self.reconnected = True
            self._trouble = trouble.reason
            # Too many connections for this server, or for something on the way; the others bring the rest.
            return self._working > 1 and (failures > 1 or trouble.busy)

    @property
    def has_brought_much(self) -> bool:
        """Whether this run has brought so much that a network that is gone is worth waiting for."""
        return self._board.done.total - self._resumed >= self.request.policy.patient_bytes

    def pause(self, seconds: float) -> None:
        """Wait before the next try."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopping or self._board.complete, seconds)

    def asks_for(self, part: Part) -> tuple[int | None, bool, str]:
        """How to ask for a part: its end (None for that of the file), whether by `Range`, and for `If-Range`."""
        whole = part.end in (ENDLESS, self._board.total)
        if self._plain and part.position:
            raise StaleError(f"{self.request.shown}: {self._trouble}, and the server can't go on", plain=True)
        if self._plain or (whole and not part.position):
            return None, False, ""
        # With a pin, the bytes of any mirror are welcome and the hash decides; without one, only of the same version.
        return None if whole else part.end, True, "" if self.request.sha256 else self._version.validator

    def opened(self, part: Part, response: httpx2.Response, answer: Answer, *, asked: bool) -> None:
        """The server has answered.

        Args:
            part: What was asked for.
            response: Whose body is read now.
            answer: What its head says.
            asked: By `Range`.

        Raises:
            StaleError: Begin anew.
            SizeMismatchError: The source has another file.
            SourceUnavailableError: It is a web page.
            DiskFullError: There is no room for the file.
        """
        with self._changed:
            part.heard = part.began = time.monotonic()
            self._answered_at = self._answered_at or part.began
            self._learn(part, answer, asked=asked)
            self._streams[part] = response

    def closed(self, part: Part) -> None:
        """Its body is over, or was broken off."""
        with self._changed:
            self._streams.pop(part, None)

    def _learn(self, part: Part, answer: Answer, *, asked: bool) -> None:
        """Compare an answer with what is known; under the lock."""
        request = self.request
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
        request, known = self.request, self._board.total
        if answer.total is not None and known is None:
            self._board.learn_total(answer.total)
            self._know_total(answer.total)
        elif answer.total is not None and answer.total != known:
            raise StaleError(f"{request.shown}: the size of the file changes", plain=answer.partial)
        elif known is None:
            if answer.partial:
                raise StaleError(f"{request.shown}: the server does not say how big the file is", plain=True)
            self.room = room(self.partial)
            self._show(None)

    def _know_total(self, total: int) -> None:
        """Called once the size is known; under the lock, or before there are threads."""
        check_space(self.partial.path.parent, total - self.partial.allocated(), self.request.shown)
        self._show(total)

    def _show(self, total: int | None) -> None:
        if not self._showing:
            self._showing = True
            self._progress.start(self.request.name, total, self._resumed)

    def wrote(self, part: Part, count: int) -> bool:
        """Note that `count` bytes of a part are in the file; whether to go on with it."""
        with self._changed:
            new = self._board.done.add(part.position, part.position + count)
            part.position += count
            part.got += count
            part.heard = time.monotonic()
            if new and self._showing:
                self._progress.advance(new)
            frontier = self._board.done.frontier()
            complete = self._board.complete
            if complete:
                self._changed.notify_all()
            going = part.left > 0 and not self.stopping
        self._hasher.follow(frontier)
        return going

    def body_ended(self, part: Part) -> None:
        """The body of an answer without a length is over: that is the size."""
        with self._changed:
            if self._board.total is None:
                part.end = part.position
                self._board.learn_total(part.position)
                self._changed.notify_all()

    @property
    def total(self) -> int | None:
        """Bytes of the file, if they are known."""
        return self._board.total

    @property
    def arrived(self) -> int:
        """Bytes that are there."""
        return self._board.done.total

    @property
    def stopping(self) -> bool:
        """Whether it is over, well or badly."""
        return self._stopping or self._failure is not None
