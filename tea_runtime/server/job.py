"""The answers that one request asks for, while they are made: pieces, results, and what ends them early."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

from tea_runtime.aio import AsyncLlmStream, in_thread
from tea_runtime.errors import CancelledCallError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from starlette.requests import Request

    from tea_models.errors import TeaModelsError
    from tea_runtime.backend import LlmBackend, LlmCallParams, LlmCallResult, Message


class Job:
    """Some answers, made together; a pair of parameters and messages for each."""

    def __init__(self, asked: Sequence[tuple[LlmCallParams, Sequence[Message] | None]]) -> None:
        self._asked = asked
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def results(self, backend: LlmBackend, request: Request) -> list[LlmCallResult]:
        """All answers as a whole; when the client goes away they are given up."""
        self._start(self._whole(backend))
        self._start(self._watch(request))
        results: list[LlmCallResult] = await self.next()
        return results

    def start_streams(self, backend: LlmBackend) -> None:
        for index, (params, messages) in enumerate(self._asked):
            stream = AsyncLlmStream(functools.partial(backend.generate, params, messages))
            self._start(self._pieces(index, stream))

    async def next(self) -> Any:
        """The number of an answer with its next piece of text, or its result; raises what ended the job."""
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
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
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._queue.put_nowait(error)

    async def _whole(self, backend: LlmBackend) -> None:
        self._queue.put_nowait(await in_thread(lambda: backend.generate_many(self._asked)))

    async def _pieces(self, index: int, stream: AsyncLlmStream) -> None:
        async for text in stream:
            self._queue.put_nowait((index, text))
        self._queue.put_nowait((index, stream.result))

    async def _watch(self, request: Request) -> None:
        with contextlib.suppress(RuntimeError):  # the answer is out already
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.end(CancelledCallError("the client went away"))
