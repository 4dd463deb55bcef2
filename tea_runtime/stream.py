"""An answer that comes piece by piece, as an iterator."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from tea_runtime.cancellation import CancelScope, current_scope
from tea_runtime.errors import CancelledCallError, LlmError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tea_runtime.call import Callback, LlmCallResult


class LlmStream:
    """The pieces of an answer as they come. It is a context manager; leaving it ends the generation.

    Args:
        pieces: Yields the pieces; its value is the result.
        cancel: Ends the generation, from any thread.

    Example:
        >>> with backend.stream_chat(messages) as stream:
        ...     for piece in stream:
        ...         print(piece, end="", flush=True)
        >>> stream.result.usage["completion_tokens"]
        17
    """

    def __init__(self, pieces: Generator[str, None, LlmCallResult], cancel: Callable[[], None]) -> None:
        self._pieces = pieces
        self._cancel = cancel
        self._result: LlmCallResult | None = None
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except BaseException as end:
            self._ended = True
            if isinstance(end, StopIteration) and end.value is not None:
                self._result = end.value
            raise

    @property
    def result(self) -> LlmCallResult:
        """The whole answer; what has not come yet is waited for.

        Raises:
            LlmError: The stream was closed before its end.
        """
        for _ in self:
            pass
        if self._result is None:
            raise LlmError("the stream was closed before its end, so there is no result")
        return self._result

    def run(self, callback: Callback) -> LlmCallResult:
        """Hand every piece to `callback`; what that raises ends the generation."""
        with self:
            for piece in self:
                callback(piece)
            return self.result

    def cancel(self) -> None:
        """End the generation, from any thread: whoever waits for a piece gets a `CancelledCallError`."""
        self._cancel()

    def close(self) -> None:
        """End the generation, from the thread that iterates."""
        if not self._ended:
            self._ended = True
            self._cancel()
            self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._ended:
            self._cancel()


def threaded_stream(work: Callable[[Callback], LlmCallResult]) -> LlmStream:
    """A stream over something that hands its pieces to a callback (which raises once nobody wants more) in a thread."""
    scope, outer = CancelScope(), current_scope()
    items: SimpleQueue[str | LlmCallResult | BaseException] = SimpleQueue()

    def callback(piece: str) -> None:
        scope.check()
        items.put(piece)

    def cancel() -> None:
        scope.cancel()
        items.put(CancelledCallError("the call was cancelled"))

    def run() -> None:
        try:
            with scope.entered():
                items.put(work(callback))
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            items.put(error)

    def pieces() -> Generator[str, None, LlmCallResult]:
        threading.Thread(target=run, name="tea-stream", daemon=True).start()
        with ExitStack() as stack:
            stack.callback(scope.cancel)
            if outer is not None:
                stack.enter_context(outer.running(cancel))
            while isinstance(item := items.get(), str):
                yield item
            if isinstance(item, BaseException):
                raise item
            return item

    return LlmStream(pieces(), cancel)
