"""What a long operation tells about how far it is. The command line draws it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Receiver of progress, which shows nothing. Methods are called from one thread at a time and must not raise."""

    def start(self, name: str, total: int | None, initial: int = 0) -> None:
        """Begin a task of so many bytes (None: unknown), of which `initial` were there already."""

    def advance(self, n: int) -> None:
        """Tell that `n` more bytes are done; negative where bytes had to be thrown away."""

    def finish(self) -> None:
        """End the task, whether it succeeded or not."""

    @contextmanager
    def task(self, name: str, total: int | None, initial: int = 0) -> Iterator[None]:
        """A task from its start to its end."""
        self.start(name, total, initial)
        try:
            yield
        finally:
            self.finish()


class JoinedProgress(Progress):
    """Shows the tasks of one or several threads as parts of a task that is begun and ended elsewhere."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()

    def start(self, name: str, total: int | None, initial: int = 0) -> None:  # noqa: ARG002 - the protocol's signature
        """Count what was there already."""
        self.advance(initial)

    def advance(self, n: int) -> None:
        """Hand on what came, one at a time."""
        with self._lock:
            self._progress.advance(n)
