"""What a caller waits for: pieces of text as they come, and at the end a result or an error."""

from __future__ import annotations

import itertools
import time
from contextlib import nullcontext
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tea_runtime.cancellation import current_scope
from tea_runtime.errors import AnswerTimeoutError, CancelledCallError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")
_numbers = itertools.count()


class Request(Generic[T]):
    """A piece of work for the engine's thread. One thread waits for it; any thread may cancel it."""

    def __init__(self, timeout: float | None = None) -> None:
        self.number = next(_numbers)
        self.cancelled = False
        self.done = False
        self.on_cancel: Callable[[], None] | None = None
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        # A queue, because waiting for it ends with Ctrl-C, and because a garbage collector may put into it.
        self._items: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    # The engine's side ------------------------------------------------------------------------------------------------

    def put(self, piece: str) -> None:
        """Hand over a piece of text."""
        self._items.put(("piece", piece))

    def finish(self, result: T) -> None:
        """End it with a result."""
        self._end("result", result)

    def fail(self, error: BaseException) -> None:
        """End it with an error."""
        self._end("error", error)

    def _end(self, kind: str, value: Any) -> None:
        if not self.done:
            self.done = True
            self._items.put((kind, value))

    # The caller's side ------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End it: in a queue at once, while it is worked on within one step. Whoever waits gets an error."""
        self.cancelled = True
        self._items.put(("error", CancelledCallError("the call was cancelled")))
        if self.on_cancel is not None:
            self.on_cancel()

    def pieces(self) -> Generator[str, None, T]:
        """The pieces as they come; the generator's value is the result. Leaving it early cancels the request."""
        scope = current_scope()
        try:
            with scope.running(self.cancel) if scope is not None else nullcontext():
                while True:
                    kind, value = self._next()
                    if kind == "result":
                        result: T = value
                        return result
                    if kind == "error":
                        raise value  # noqa: TRY301 - of the engine's thread
                    yield value
        except BaseException:
            if not self.done:
                self.cancel()
            raise

    def wait(self) -> T:
        """Wait for the result; raises as `pieces` does."""
        pieces = self.pieces()
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                result: T = end.value
                return result

    def _next(self) -> tuple[str, Any]:
        left = None if self._deadline is None else self._deadline - time.monotonic()
        try:
            return self._items.get(timeout=None if left is None else max(left, 0))
        except Empty:
            raise AnswerTimeoutError(f"no whole answer within {self._timeout:g} seconds (timeout)") from None
