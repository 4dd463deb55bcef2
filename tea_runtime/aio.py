"""The twin of a backend for asyncio: the same methods, awaited, without blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from tea_runtime.cancellation import CancelScope, current_scope
from tea_runtime.errors import CancelledCallError, LlmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tea_runtime.backend import Callback, LlmBackend, LlmCallParams, LlmCallResult, Message

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run something that calls a backend in a thread of its own; cancelling the task ends what the backend does.

    Args:
        work: What to run.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    scope = CancelScope()

    def settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        try:
            with scope.entered():
                outcome: tuple[Callable[[Any], None], Any] = future.set_result, work()
        except StopIteration as error:  # a future takes none
            outcome = future.set_exception, LlmError(str(error))
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            outcome = future.set_exception, error
        _tell(loop, settle, *outcome)

    # Not a pool: requests wait for each other in the engine, and a pool would decide how many of them it may see.
    threading.Thread(target=run, name="tea-request", daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        scope.cancel()
        raise


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
        loop.call_soon_threadsafe(function, *arguments)


class AsyncLlmStream:
    """The pieces of an answer as they come; an asynchronous iterator and context manager.

    Example:
        >>> async with backend.stream_chat(messages) as stream:
        ...     async for piece in stream:
        ...         print(piece, end="", flush=True)
        >>> stream.result.content
    """

    def __init__(self, work: Callable[[Callback], LlmCallResult]) -> None:
        self._work = work
        self._items: asyncio.Queue[str | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._result: LlmCallResult | None = None

    @property
    def result(self) -> LlmCallResult:
        """The whole answer, once the stream is at its end.

        Raises:
            LlmError: It is not, or was closed before.
        """
        if self._result is None:
            raise LlmError("the stream is not at its end, so there is no result")
        return self._result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._ended:
            raise StopAsyncIteration
        if self._task is None:
            self._task = asyncio.create_task(self._run(asyncio.get_running_loop()))
        try:
            piece = await self._items.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if piece is not None:
            return piece
        self._ended = True
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        def piece(text: str) -> None:
            if (scope := current_scope()) is not None:
                scope.check()
            _tell(loop, self._items.put_nowait, text)

        try:
            self._result = await in_thread(lambda: self._work(piece))
        except asyncio.CancelledError:
            self._error = CancelledCallError("the call was cancelled")
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            self._error = error
        finally:
            self._items.put_nowait(None)

    def cancel(self) -> None:
        """End the generation within one step."""
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """End the generation, if it is not at its end."""
        self._ended = True
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncLlmBackend:
    """A backend for asyncio: every method as that of `LlmBackend`, awaited.

    Args:
        backend: What answers; it can be used from threads at the same time.

    Example:
        >>> backend = AsyncLlmBackend(LocalLlmBackend("smollm2-135m"))
        >>> one, other = await asyncio.gather(backend.chat(first), backend.chat(second))  # decoded together
    """

    def __init__(self, backend: LlmBackend) -> None:
        self.backend = backend

    async def call(self, params: LlmCallParams) -> LlmCallResult:
        """As `LlmBackend.call`."""
        return await in_thread(lambda: self.backend.call(params))

    async def chat(self, messages: Sequence[Message], *args: Any, **options: Any) -> LlmCallResult:
        """As `LlmBackend.chat`."""
        return await in_thread(lambda: self.backend.chat(messages, *args, **options))

    def stream(self, params: LlmCallParams) -> AsyncLlmStream:
        """As `LlmBackend.stream`, an asynchronous iterator.

        Example:
            >>> async for piece in backend.stream(LlmCallParams("Once upon a time")):
            ...     print(piece, end="", flush=True)
        """
        return AsyncLlmStream(lambda callback: self.backend.stream(params, callback))

    def stream_chat(self, messages: Sequence[Message], *args: Any, **options: Any) -> AsyncLlmStream:
        """As `LlmBackend.stream_chat`, an asynchronous iterator."""
        return AsyncLlmStream(lambda callback: self.backend.stream_chat(messages, callback, *args, **options))

    async def call_many(self, params: Sequence[LlmCallParams], *, return_errors: bool = False) -> list[Any]:
        """As `LlmBackend.call_many`."""
        return await in_thread(lambda: self.backend.call_many(params, return_errors=return_errors))

    async def chat_many(self, conversations: Sequence[Sequence[Message]], *args: Any, **options: Any) -> list[Any]:
        """As `LlmBackend.chat_many`."""
        return await in_thread(lambda: self.backend.chat_many(conversations, *args, **options))

    @overload
    async def embed(self, text: str) -> list[float]: ...
    @overload
    async def embed(self, text: list[str] | tuple[str, ...]) -> list[list[float]]: ...
    async def embed(self, text: str | list[str] | tuple[str, ...]) -> list[float] | list[list[float]]:
        """As `LlmBackend.embed`."""
        return await in_thread(lambda: self.backend.embed(text))

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """As `LlmBackend.rerank`."""
        return await in_thread(lambda: self.backend.rerank(query, documents))

    async def close(self) -> None:
        """Close the backend."""
        await in_thread(self.backend.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
