"""The twin of a backend for asyncio: the same methods, awaited, without blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload

from tea_runtime.backend import LlmCallParams, check_messages
from tea_runtime.cancellation import CancelScope
from tea_runtime.errors import LlmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from tea_models.errors import TeaModelsError
    from tea_runtime.backend import Callback, LlmBackend, LlmCallResult, Message

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run something that calls a backend in a thread of its own; cancelling the task ends what the backend does.

    Args:
        work: What to run.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    scope = CancelScope()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(cast("T", result))
            else:
                future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            with scope.entered():
                result = work()
        except BaseException as caught:  # noqa: BLE001 - it is raised again where it is awaited
            error = LlmError(str(caught)) if isinstance(caught, StopIteration) else caught
        _tell(loop, settle, result, error)

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
        self._scope = CancelScope()
        self._items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._started = self._ended = False
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
        if not self._started:
            self._started = True
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._run, args=(loop,), name="tea-request", daemon=True).start()
        try:
            kind, value = await self._items.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if kind == "piece":
            return str(value)
        self._ended = True
        if kind == "error":
            raise value
        self._result = value
        raise StopAsyncIteration

    def cancel(self) -> None:
        """End the generation within one step."""
        self._scope.cancel()

    async def aclose(self) -> None:
        """End the generation, if it is not at its end."""
        if not self._ended:
            self._ended = True
            self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        def piece(text: str) -> None:
            self._scope.check()
            _tell(loop, self._items.put_nowait, ("piece", text))

        try:
            with self._scope.entered():
                item: tuple[str, Any] = "result", self._work(piece)
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            item = "error", error
        _tell(loop, self._items.put_nowait, item)


class AsyncLlmBackend:
    """A backend for asyncio.

    Args:
        backend: What answers; it can be used from threads at the same time.

    Example:
        >>> backend = AsyncLlmBackend(LocalLlmBackend("smollm2-135m"))
        >>> one, other = await asyncio.gather(backend.chat(first), backend.chat(second))  # decoded together
    """

    def __init__(self, backend: LlmBackend) -> None:
        self.backend = backend

    async def call(self, params: LlmCallParams) -> LlmCallResult:
        """As `LlmBackend.call`.

        Example:
            >>> result = await backend.call(LlmCallParams("The capital of France is"))
        """
        return await in_thread(lambda: self.backend.call(params))

    async def chat(self, messages: Sequence[Message], *args: Any, **options: Any) -> LlmCallResult:
        """As `LlmBackend.chat`.

        Example:
            >>> result = await backend.chat([{"role": "user", "content": "Say hello."}])
        """
        return await in_thread(lambda: self.backend.chat(messages, *args, **options))

    def stream(self, params: LlmCallParams) -> AsyncLlmStream:
        """As `LlmBackend.stream`, an asynchronous iterator.

        Example:
            >>> async for piece in backend.stream(LlmCallParams("Once upon a time")):
            ...     print(piece, end="", flush=True)
        """
        return AsyncLlmStream(lambda callback: self.backend.generate(params, None, callback))

    def stream_chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> AsyncLlmStream:
        """As `LlmBackend.stream_chat`, an asynchronous iterator.

        Example:
            >>> async for piece in backend.stream_chat([{"role": "user", "content": "Tell a joke."}]):
            ...     print(piece, end="", flush=True)
        """
        params, plain = LlmCallParams.of("", max_tokens, temperature, stop, options), check_messages(messages)
        return AsyncLlmStream(lambda callback: self.backend.generate(params, plain, callback))

    async def call_many(
        self, params: Sequence[LlmCallParams], *, return_errors: bool = False
    ) -> list[LlmCallResult | TeaModelsError]:
        """As `LlmBackend.call_many`."""
        return await in_thread(lambda: self.backend.call_many(params, return_errors=return_errors))

    async def chat_many(
        self, conversations: Sequence[Sequence[Message]], *args: Any, **options: Any
    ) -> list[LlmCallResult | TeaModelsError]:
        """As `LlmBackend.chat_many`."""
        return await in_thread(lambda: self.backend.chat_many(conversations, *args, **options))

    @overload
    async def embed(self, text: str) -> list[float]: ...
    @overload
    async def embed(self, text: list[str] | tuple[str, ...]) -> list[list[float]]: ...
    async def embed(self, text: str | list[str] | tuple[str, ...]) -> list[float] | list[list[float]]:
        """As `LlmBackend.embed`.

        Example:
            >>> vectors = await backend.embed(["one text", "another"])
        """
        return await in_thread(lambda: self.backend.embed(text))

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """As `LlmBackend.rerank`."""
        return await in_thread(lambda: self.backend.rerank(query, documents))

    async def close(self) -> None:
        """Close the backend."""
        await in_thread(self.backend.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
