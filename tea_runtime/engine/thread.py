"""The one thread of a process that calls llama.cpp to load, evaluate and embed.

OpenMP keeps a team of threads for every thread that calls it: eight callers with teams of their own were measured at
half the speed of one. So callers put functions into an inbox and wait, and this thread works for all of them.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
from contextlib import nullcontext
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tea_runtime.call import current_scope
from tea_runtime.errors import AnswerTimeoutError, CancelledCallError, LlmError
from tea_runtime.llama.context import AbortFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

T = TypeVar("T")
_numbers = itertools.count()
_logger = logging.getLogger("tea_runtime")
# Seconds for the step that is running when the process ends: the abort flag ends it after one operation.
_LAST_STEP = 10.0


class Request(Generic[T]):
    """Work for the engine's thread. One thread waits for it, `timeout` seconds at most; any thread may cancel it."""

    def __init__(self, timeout: float | None = None, owner: object = None) -> None:
        self.owner = owner  # the backend that it belongs to
        self.number = next(_numbers)  # requests that were made earlier have smaller ones
        self.cancelled = False  # nobody waits for it any more; the engine drops it
        self.done = False
        self.on_cancel: Callable[[], None] | None = None
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        # A queue, because waiting for it ends with Ctrl-C, and because a garbage collector may put into it.
        self._items: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def put(self, piece: str) -> None:
        self._items.put(("piece", piece))

    def finish(self, result: T) -> None:
        self._end("result", result)

    def fail(self, error: BaseException) -> None:
        self._end("error", error)

    def _end(self, kind: str, value: Any) -> None:
        if not self.done:
            self.done = True
            self._items.put((kind, value))

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
                    left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0)
                    kind, value = self._items.get(timeout=left)
                    if kind == "result":
                        result: T = value
                        return result
                    if kind == "error":
                        raise value  # noqa: TRY301 - of the engine's thread
                    yield value
        except Empty:
            self.cancel()
            raise AnswerTimeoutError(f"no whole answer within {self._timeout:g} seconds (timeout)") from None
        except BaseException:
            if not self.done:
                self.cancel()
            raise

    def wait(self) -> T:
        pieces = self.pieces()
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                result: T = end.value
                return result


class EngineThread:
    """Runs functions and models' steps in one thread, which is started by the first of them."""

    def __init__(self) -> None:
        #: The models that are open (`engine.model.Model`); changed only in the thread.
        self.models: list[Any] = []
        self.abort: AbortFlag  # ends the step that is running; made with the thread
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        #: Lets the thread run a function, some time. Safe in a garbage collector's finalizer.
        self.post = self._inbox.put
        self._ending = False
        self.forked = False  # this is the copy of the engine in a forked process
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        # Who is in the step that is running, for `_cancelled`; the lock keeps the flag from hitting the next step.
        self._step_lock = threading.Lock()
        self._in_step: tuple[Request[Any], ...] = ()

    def submit(self, request: Request[Any], work: Callable[[], None]) -> None:
        """Let the thread run a function that begins a request."""
        if self.forked:
            # The threads of llama.cpp are not there in a fork: whoever waits for them waits for ever.
            raise LlmError(
                "a model can't be used in a process that was forked after it was loaded",
                hint="load it in the new process, or start processes by multiprocessing's 'spawn'",
            )
        if self._ending:
            raise LlmError("the process is ending: no model can be used any more")
        request.on_cancel = self._cancelled
        with self._starting:
            if self._thread is None:
                self.abort = AbortFlag()
                self._thread = threading.Thread(target=self._run, name="tea-engine", daemon=True)
                self._thread.start()
        self._inbox.put(work)

    def call(self, function: Callable[[Request[T]], T]) -> T:
        """Run a function in the thread and wait for its result; raises what it raises."""
        request: Request[T] = Request()

        def work() -> None:
            if request.cancelled:
                return
            try:
                request.finish(function(request))
            except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
                request.fail(error)

        self.submit(request, work)
        return request.wait()

    def _cancelled(self) -> None:
        """End the running step, if all whose tokens are in it have gone."""
        with self._step_lock:
            if self._in_step and all(request.cancelled for request in self._in_step):
                self.abort.set(ended=True)

    def shutdown(self) -> None:
        """End the thread; what is running ends at the next operation."""
        if self._thread is None:
            return
        with self._step_lock:
            self._ending = True
            self.abort.set(ended=True)
        self.post(lambda: None)  # wakes it
        self._thread.join(_LAST_STEP)

    def set_step(self, requests: Iterable[Request[Any]] = ()) -> None:
        """Say whose tokens the step computes that is about to run, or that it is over."""
        with self._step_lock:
            self._in_step = tuple(requests)
            if not self._ending:
                self.abort.set(ended=False)

    def _run(self) -> None:
        while not self._ending:
            self._read_inbox(wait=not any(model.busy for model in self.models))
            self._round()
        # Only daemons can still wait for answers, and they end with the process: an error would only be printed.
        for model in self.models:
            model.close(at_exit=True)

    def _round(self) -> None:  # on its own, so that no variable of `_run` keeps a model
        for model in tuple(self.models):
            if model.busy and not self._ending:
                model.step()

    def _read_inbox(self, *, wait: bool) -> None:
        while True:
            try:
                work = self._inbox.get(block=wait)
            except Empty:
                return
            wait = False
            try:
                work()
            except BaseException:
                _logger.exception("the engine's thread goes on after an error")
            del work  # it may be the last to hold weights


_engine = EngineThread()
atexit.register(lambda: _engine.shutdown())  # noqa: PLW0108 - after a fork it is another one


def engine() -> EngineThread:
    return _engine


def _after_fork() -> None:
    global _engine  # noqa: PLW0603 - there is one a process; a fork has none of the threads, and locks may be held
    _engine.forked = True
    _engine = EngineThread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
