"""One attempt at a download: its workers, each with a connection, and what they share."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tea_models.disk.space import check_space
from tea_models.errors import SizeMismatchError, SourceUnavailableError, TeaModelsError
from tea_models.net.answers import Answer, StaleError, TransientError, Version, explain_failure, read_answer
from tea_models.net.client import cut, open_stream
from tea_models.net.frontier import FrontierHasher
from tea_models.net.growing import LONGEST_HEADER, SLACK, size_by_header
from tea_models.net.partial import PartialFile, State, fingerprint, room
from tea_models.net.ranges import ENDLESS, SMALLEST_PART, Board, Part, Ranges
from tea_models.net.writer import Writer

if TYPE_CHECKING:
    import httpx2

    from tea_models.net.retry import RetryPolicy
    from tea_models.progress import Progress

# Less than that is no progress: a server that drops every connection after some bytes is not tried for ever.
_PROGRESS: Final = 16 << 10
# Bytes a second of the first connection above which it stays alone, and how long it is watched first.
_FAST_RATE: Final = 200e6
_JUDGED_SECONDS: Final = 0.08
_FIRST_LOOK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be downloaded; see `download`."""

    url: str = field(repr=False)
    shown: str
    name: str
    client: httpx2.Client
    headers: dict[str, str] = field(repr=False)
    size: int | None
    sha256: str | None
    connections: int
    expect_gguf: bool
    policy: RetryPolicy


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
        self.limit = ENDLESS  # where a file of unknown size must end, so that it does not fill the disk
        self._header_looked_for = _FIRST_LOOK
        self.reconnected = False
        self._trouble = "the connection broke"
        self._resumed = self._board.done.total
        self._changed = threading.Condition()
        self._workers: list[threading.Thread] = []
        self._working = 0
        self._streams: dict[Part, httpx2.Response] = {}
        self._unproved: set[Part] = set()  # bodies that may be longer than the file should be, and only their end tells
        self._failure: BaseException | None = None
        self._stopping = False
        self._showing = False
        self._hasher = FrontierHasher(partial, state.checked if state else (0, ""))

    # -- called by the thread that attends --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; one worker finds out what the server can do."""
        if self._board.total is not None:
            self._know_total(self._board.total)
        self._hasher.follow(self._board.done.frontier())
        if not self._board.complete:
            self._add_worker()

    def add_workers(self) -> None:
        """Start the other workers when it has turned out that they can help."""
        with self._changed:
            total = self._board.total
            if total is None or not self._ranges_proved or self.stopping or not self._network_is_slow():
                return
            wanted = min(self._connections, 1 + (total - self._board.done.total) // SMALLEST_PART)
        while len(self._workers) < wanted:
            self._add_worker()

    def limit_by_header(self) -> None:
        """Where no server says how big a model is, its own header does: it must not go on for ever."""
        with self._changed:
            frontier = self._board.done.frontier()
            wanted = self._board.total is None and self.request.name.lower().endswith(".gguf")
        if not wanted or frontier < self._header_looked_for:
            return
        self._header_looked_for = 4 * frontier
        expected = size_by_header(self.partial, frontier)
        if expected is None and frontier > LONGEST_HEADER:
            expected = frontier
        if expected is not None:
            self._header_looked_for = ENDLESS
            self.limit = min(self.limit, expected + SLACK)

    def _network_is_slow(self) -> bool:
        """Whether more connections could help: not where one brings as much as this process can take in."""
        elapsed = time.monotonic() - self._answered_at
        return elapsed >= _JUDGED_SECONDS and (self._board.done.total - self._resumed) / elapsed < _FAST_RATE

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
                source=fingerprint(request.url),
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
        deadline = time.monotonic() + 2
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End the progress."""
        with self._changed:
            if self._showing:
                self._showing = False
                self._progress.finish()

    # -- shared ------------------------------------------------------------------------------------------------------

    def _add_worker(self) -> None:
        with self._changed:
            self._working += 1
        self.partial.enter()
        worker = threading.Thread(target=self._work, name=f"download {len(self._workers)}", daemon=True)
        self._workers.append(worker)
        worker.start()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is None and not self._stopping:
                self._failure = error
            self._changed.notify_all()

    def _know_total(self, total: int) -> None:
        """Called once the size is known; under the lock, or before there are threads."""
        check_space(self.partial.path.parent, total - self.partial.allocated(), self.request.shown)
        self._show(total)

    def _show(self, total: int | None) -> None:
        if not self._showing:
            self._showing = True
            self._progress.start(self.request.name, total, self._resumed)

    # -- a worker ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._take_parts()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that attends, which raises it
            self._fail(error)
        finally:
            self.partial.leave()
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _take_parts(self) -> None:
        failures, rate = 0, 0.0
        while (part := self._next_part(rate)) is not None:
            try:
                self._fetch(part)
                failures, rate = 0, part.rate(time.monotonic())
                continue
            except TransientError as error:
                trouble = error
            finally:
                with self._changed:
                    self._board.give_back(part)
                    self._changed.notify_all()
            if not part.left:
                continue  # another worker took over what was left
            failures = (0 if part.got >= _PROGRESS else failures) + (2 if trouble.silent else 1)
            if self._retires(failures, trouble):
                return
            self._pause(self.request.policy.wait(failures, trouble.retry_after))

    def _next_part(self, rate: float) -> Part | None:
        """A part to fetch; waits while others may still give one up; None when there is nothing to do."""
        policy = self.request.policy
        with self._changed:
            while not self._stopping and self._failure is None and not self._board.complete:
                part = self._board.take(silent_seconds=policy.silent_seconds, rate=rate)
                if part is not None:
                    self._cut_finished()
                    return part
                self._changed.wait(0.5)
        return None

    def _cut_finished(self) -> None:
        """Wake a connection whose part was taken over."""
        for part, response in self._streams.items():
            if not part.left:
                cut(response)

    def _retires(self, failures: int, trouble: TransientError) -> bool:
        """Whether this worker gives up: to others that go on, or for all of them (then it raises)."""
        policy = self.request.policy
        with self._changed:
            self.reconnected = True
            self._trouble = trouble.reason
            if self._working > 1 and (failures > 1 or trouble.busy):
                # Too many connections for this server, or for something on the way; the others bring the rest.
                return True
            tries = policy.tries if self._answered_at else policy.first_tries
            if self._board.done.total - self._resumed >= policy.patient_bytes:
                tries = policy.patient_tries
        if failures < tries:
            return False
        asked = ""
        if trouble.retry_after is not None and trouble.retry_after > policy.longest_retry_after:
            asked = f"; it asks to wait {trouble.retry_after:,.0f} s"
        raise SourceUnavailableError(
            f"{self.request.shown}: {trouble.reason} (tried again and again{asked})",
            hint="what has arrived is kept; run the command again later to go on"
            if self._board.done.total
            else "check the network and the address, or try again later",
        )

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._failure is not None or self._board.complete, seconds)

    def _fetch(self, part: Part) -> None:
        """Ask for a part and write what comes."""
        request = self.request
        headers, asked = self._headers(part)
        try:
            response = open_stream(request.client, request.url, headers, pinned=request.sha256 is not None)
        except TeaModelsError:
            raise
        except Exception as error:  # noqa: BLE001 - the client's exceptions are told apart in one place
            raise explain_failure(error, request.shown) from None
        try:
            self._answered_at = self._answered_at or time.monotonic()
            answer = read_answer(response, request.shown, start=part.position, asked_range=asked)
            with self._changed:
                self._learn(part, answer, asked=asked)
                self._streams[part] = response
            Writer(self, part, whole=not answer.partial).drain(response)
        finally:
            with self._changed:
                self._streams.pop(part, None)
                self._unproved.discard(part)
                self._changed.notify_all()
            response.close()
        # A 206 may be shorter than what was asked for; then the rest is asked for like any other part.
        if part.left and not self.stopping and not (answer.partial and part.position == answer.end and part.got):
            raise TransientError("the answer ended too early")

    def _headers(self, part: Part) -> tuple[dict[str, str], bool]:
        headers = dict(self.request.headers)
        first = part.position == 0
        whole = part.end in (ENDLESS, self._board.total)
        if self._plain:
            if not first:
                raise StaleError(f"{self.request.shown}: {self._trouble}, and the server can't go on", plain=True)
            return headers, False
        if first and whole:
            return headers, False
        headers["Range"] = f"bytes={part.position}-" + ("" if whole else str(part.end - 1))
        # With a pin, the bytes of any mirror are welcome and the hash decides; without one, only of the same version.
        if self._version.validator and self.request.sha256 is None:
            headers["If-Range"] = self._version.validator
        return headers, True

    def _learn(self, part: Part, answer: Answer, *, asked: bool) -> None:
        """Compare an answer with what is known; under the lock."""
        request = self.request
        part.heard = part.began = time.monotonic()
        if answer.html and self._resumed:
            raise SourceUnavailableError(
                f"{request.shown}: the server sends a web page instead of the rest of the file",
                hint="a login of the network, perhaps; what has arrived is kept: run the command again later",
            )
        if not asked and request.size is not None and answer.total not in (None, request.size):
            raise self._wrong_size(answer)
        if not self._version.accept(answer) and request.sha256 is None:
            raise StaleError(f"{request.shown}: the file changed meanwhile", plain=False)
        if asked and not answer.partial and part.position:
            if request.size is not None and answer.total not in (None, request.size):
                raise self._wrong_size(answer)
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
            if request.size is not None and not answer.partial:
                raise self._wrong_size(answer)
            raise StaleError(f"{request.shown}: the size of the file changes", plain=answer.partial)
        elif known is None:
            if answer.partial:
                raise StaleError(f"{request.shown}: the server does not say how big the file is", plain=True)
            self.limit = min(self.limit, room(self.partial))
            self._show(None)

    def _wrong_size(self, answer: Answer) -> SizeMismatchError:
        hint = "the source has another file"
        if answer.html:
            hint = "the server sends a web page: a login, a licence or an error; open the address in a browser"
        expected, actual = self.request.size or 0, answer.total or 0
        return SizeMismatchError(self.request.shown, expected=expected, actual=actual, hint=hint)

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
            going = part.left > 0 and not self._stopping and self._failure is None
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
        return self._board.total

    @property
    def stopping(self) -> bool:
        return self._stopping or self._failure is not None
