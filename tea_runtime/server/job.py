"""The answers that one request asks for, while they are made: pieces, results, and what ends them early."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tea_runtime.aio import AsyncLlmStream, in_thread
from tea_runtime.server.errors import ClientGoneError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from starlette.requests import Request

    from tea_models.errors import TeaModelsError
    from tea_runtime.aio import AsyncLlmBackend
    from tea_runtime.backend import LlmBackend, LlmCallParams, LlmCallResult, Message


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text of one answer, or its result."""

    index: int
    value: str | LlmCallResult


class Job:
    """Some answers, made together.

    Args:
        asked: A pair of parameters and messages for each.
    """

    def __init__(self, asked: Sequence[tuple[LlmCallParams, Sequence[Message] | None]]) -> None:
        self._asked = asked
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | Sequence[LlmCallResult] | BaseException] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def results(self, backend: AsyncLlmBackend, request: Request) -> Sequence[LlmCallResult]:
        """All answers as a whole; when the client goes away they are given up.

        Raises:
            TeaModelsError: One of them failed, or the job was ended.
        """
        self._start(self._whole(backend.backend))
        self._start(self._watch(request))
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        assert not isinstance(item, Piece)
        return item

    def start_streams(self, backend: AsyncLlmBackend) -> None:
        """Begin to make all answers piece by piece."""
        for index, (params, messages) in enumerate(self._asked):
            work = functools.partial(backend.backend.generate, params, messages)
            self._start(self._pieces(index, AsyncLlmStream(work)))

    async def next(self) -> Piece:
        """The next piece of any answer, or its result.

        Raises:
            TeaModelsError: An answer failed, or the job was ended.
        """
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        assert isinstance(item, Piece)
        return item

    def end(self, error: TeaModelsError | None = None) -> None:
        """Give up what is not finished; whoever waits gets the error. For the loop's thread."""
        for task in self._tasks:
            task.cancel()
        if error is not None:
            self._queue.put_nowait(error)

    def end_from_outside(self, error: TeaModelsError) -> None:
        """As `end`, for any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.end, error)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _whole(self, backend: LlmBackend) -> None:
        try:
            results = await in_thread(lambda: backend.generate_many(self._asked))
            self._queue.put_nowait(cast("list[LlmCallResult]", results))
        except Exception as error:  # noqa: BLE001 - it is raised again where it is awaited
            self._queue.put_nowait(error)

    async def _pieces(self, index: int, stream: AsyncLlmStream) -> None:
        try:
            async for text in stream:
                self._queue.put_nowait(Piece(index, text))
            self._queue.put_nowait(Piece(index, stream.result))
        except Exception as error:  # noqa: BLE001 - it is raised again where it is awaited
            self._queue.put_nowait(error)

    async def _watch(self, request: Request) -> None:
        with contextlib.suppress(RuntimeError):  # the answer is out already
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.end(ClientGoneError("the client went away"))
