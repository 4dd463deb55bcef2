"""Ending work from outside the thread that waits for it: by a timeout, a vanished client, an asyncio task."""

from __future__ import annotations

import contextvars
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tea_runtime.errors import CancelledCallError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_current: contextvars.ContextVar[CancelScope | None] = contextvars.ContextVar("tea_runtime_cancel_scope", default=None)


class CancelScope:
    """Everything that is asked of backends while it is entered, and can be ended together, from any thread.

    Example:
        >>> scope = CancelScope()
        >>> with scope.entered():
        ...     backend.chat(messages)  # raises CancelledCallError once another thread calls scope.cancel()
    """

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = threading.Lock()
        self._enders: set[Callable[[], None]] = set()

    @contextmanager
    def entered(self) -> Iterator[CancelScope]:
        """Let this thread's calls be part of the scope."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    def cancel(self) -> None:
        """End what is running, and refuse what is asked for afterwards."""
        with self._lock:
            self.cancelled = True
            enders = list(self._enders)
        for end in enders:
            end()

    @contextmanager
    def running(self, end: Callable[[], None]) -> Iterator[None]:
        """Register a call, which `end` ends, for as long as it runs; raises as `check` does."""
        with self._lock:
            self.check()
            self._enders.add(end)
        try:
            yield
        finally:
            with self._lock:
                self._enders.discard(end)

    def check(self) -> None:
        """Raise a `CancelledCallError` if the scope was cancelled."""
        if self.cancelled:
            raise CancelledCallError("the call was cancelled")


def current_scope() -> CancelScope | None:
    """The scope that this thread's calls are part of, if any."""
    return _current.get()
