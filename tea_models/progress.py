"""What a long operation tells about how far it is. The command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receiver of progress. Methods are called from one thread at a time and must not raise."""

    def start(self, name: str, total: int | None, initial: int = 0) -> None:
        """Begin a task of so many bytes (None: unknown), of which `initial` were there already."""

    def advance(self, n: int) -> None:
        """Tell that `n` more bytes are done; negative where bytes had to be thrown away."""

    def finish(self) -> None:
        """End the task, whether it succeeded or not."""


class Silent:
    """A progress that shows nothing."""

    def start(self, name: str, total: int | None, initial: int = 0) -> None:
        pass

    def advance(self, n: int) -> None:
        pass

    def finish(self) -> None:
        pass
