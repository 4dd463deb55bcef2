"""The one thread of a process that calls llama.cpp to load, evaluate and embed.

OpenMP keeps a team of threads for every thread that calls it: eight callers with teams of their own were measured at
half the speed of one. So callers put functions into an inbox and wait, and this thread works for all of them.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from tea_runtime.engine.request import Request
from tea_runtime.errors import LlmError
from tea_runtime.llama.context import AbortFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")
_logger = logging.getLogger("tea_runtime")
# Seconds for the step that is running when the process ends: the abort flag ends it after one operation.
_LAST_STEP = 10.0


class EngineThread:
    """Runs functions and models' steps in one thread, which is started by the first of them."""

    def __init__(self) -> None:
        #: The models that are open (`engine.model.Model`); changed only in the thread.
        self.models: list[Any] = []
        #: Ends the step that is running; made with the thread.
        self.abort: AbortFlag
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._ending = False
        self._forked = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        # Who is in the step that is running, for `_cancelled`; the lock keeps the flag from hitting the next step.
        self._step_lock = threading.Lock()
        self._in_step: tuple[Request[Any], ...] = ()

    # Any thread -------------------------------------------------------------------------------------------------------

    def post(self, work: Callable[[], None]) -> None:
        """Let the thread run a function, some time. Safe in a garbage collector's finalizer."""
        self._inbox.put(work)

    def submit(self, request: Request[Any], work: Callable[[], None]) -> None:
        """Let the thread run a function that begins a request."""
        if self._forked:
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

        if self._thread is threading.current_thread():
            work()
        else:
            self.submit(request, work)
        return request.wait()

    def _cancelled(self) -> None:
        """End the running step, if all whose tokens are in it have gone."""
        with self._step_lock:
            if self._in_step and all(request.cancelled for request in self._in_step):
                self.abort.raise_()

    def forked(self) -> None:
        """Refuse everything from now on: this is the copy of the engine in a forked process."""
        self._forked = True

    def shutdown(self) -> None:
        """End the thread; what is running ends at the next operation."""
        if self._thread is None:
            return
        with self._step_lock:
            self._ending = True
            self.abort.raise_()
        self.post(lambda: None)  # wakes it
        self._thread.join(_LAST_STEP)

    # The engine's thread ----------------------------------------------------------------------------------------------

    def set_step(self, requests: Iterable[Request[Any]] = ()) -> None:
        """Say whose tokens the step computes that is about to run, or that it is over."""
        with self._step_lock:
            self._in_step = tuple(requests)
            if not self._ending:
                self.abort.lower()

    def _run(self) -> None:
        while not self._ending:
            self._read_inbox(wait=not any(model.busy for model in self.models))
            self._round()
        # Only daemons can still wait for answers, and they end with the process: an error would only be printed.
        for model in self.models:
            model.close(at_exit=True)

    def _round(self) -> None:
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
    """The engine of this process."""
    return _engine


def _after_fork() -> None:
    global _engine  # noqa: PLW0603 - there is one a process; a fork has none of the threads, and locks may be held
    _engine.forked()
    _engine = EngineThread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
