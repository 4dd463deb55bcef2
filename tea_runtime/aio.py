"""The twin of a backend for asyncio: the same methods, awaited, without blocking the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from tea_runtime.backend import Callback, LlmBackend, LlmCallParams, LlmCallResult, Message
from tea_runtime.call import CancelScope, current_scope
from tea_runtime.errors import CancelledCallError, LlmError

T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(work: Callable[[], T]) -> T:
    """Run what calls a backend in a thread of its own; cancelling the task ends what the backend does."""
    scope, future = CancelScope(), concurrent.futures.Future[T]()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            with scope.entered():
                future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            future.set_exception(LlmError(str(error)) if isinstance(error, StopIteration) else error)

    # Not a pool: requests wait for each other in the engine, and a pool would decide how many of them it may see.
    threading.Thread(target=run, name="tea-request", daemon=True).start()
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        scope.cancel()
        raise


class AsyncLlmStream(contextlib.AbstractAsyncContextManager["AsyncLlmStream"]):
    """The pieces of an answer as they come; an asynchronous iterator and context manager.

    Example:
        >>> async with backend.stream_chat(messages) as stream:
        ...     async for piece in stream:
        ...         print(piece, end="", flush=True)
        >>> stream.result.content
    """

    def __init__(self, work: Callable[[Callback], LlmCallResult]) -> None:
        self._work = work
        self._task: asyncio.Task[LlmCallResult] | None = None
        self._result: LlmCallResult | None = None
        self._pieces = self._run()

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
        return await anext(self._pieces)

    async def _run(self) -> AsyncGenerator[str]:
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[str | None] = asyncio.Queue()

        def piece(text: str) -> None:
            if (scope := current_scope()) is not None:
                scope.check()
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                loop.call_soon_threadsafe(items.put_nowait, text)

        self._task = asyncio.create_task(in_thread(lambda: self._work(piece)))
        self._task.add_done_callback(lambda _: items.put_nowait(None))
        try:
            while (text := await items.get()) is not None:
                yield text
            if self._task.cancelled():
                raise CancelledCallError("the call was cancelled")
            self._result = self._task.result()
        finally:
            self._task.cancel()

    def cancel(self) -> None:
        """End the generation within one step."""
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """End the generation, if it is not at its end."""
        await self._pieces.aclose()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _awaited(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """A method of a backend, as one of its twin."""

    @functools.wraps(method)
    async def awaited(twin: AsyncLlmBackend, /, *args: P.args, **options: P.kwargs) -> T:
        return await in_thread(lambda: getattr(twin.backend, method.__name__)(*args, **options))

    return awaited


class AsyncLlmBackend(contextlib.AbstractAsyncContextManager["AsyncLlmBackend"]):
    """A backend for asyncio: every method as that of `LlmBackend`, awaited.

    Args:
        backend: What answers; it can be used from threads at the same time.

    Example:
        >>> backend = AsyncLlmBackend(LocalLlmBackend("smollm2-135m"))
        >>> one, other = await asyncio.gather(backend.chat(first), backend.chat(second))  # decoded together
        >>> async for piece in backend.stream_chat(messages):
        ...     print(piece, end="", flush=True)
    """

    def __init__(self, backend: LlmBackend) -> None:
        self.backend = backend

    call = _awaited(LlmBackend.call)
    call_many = _awaited(LlmBackend.call_many)
    chat = _awaited(cast("Callable[..., LlmCallResult]", LlmBackend.chat))
    chat_many = _awaited(cast("Callable[..., list[Any]]", LlmBackend.chat_many))
    embed = _awaited(LlmBackend.embed)
    rerank = _awaited(LlmBackend.rerank)
    close = _awaited(LlmBackend.close)

    def stream(self, params: LlmCallParams) -> AsyncLlmStream:
        """As `LlmBackend.stream`, an asynchronous iterator."""
        return AsyncLlmStream(lambda callback: self.backend.stream(params, callback))

    def stream_chat(self, messages: Sequence[Message], *args: Any, **options: Any) -> AsyncLlmStream:
        """As `LlmBackend.stream_chat`, an asynchronous iterator."""
        return AsyncLlmStream(lambda callback: self.backend.stream_chat(messages, callback, *args, **options))

    async def __aexit__(self, *_: object) -> None:
        await self.close()
