"""The state of a context on its way into a larger one: in memory where it is small, otherwise through a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tea_runtime.llama.context import Context


class SavedState:
    """What the first sequence of a context holds, taken out before the context is closed; a context manager.

    Copying takes milliseconds where evaluating again takes seconds, and the continuation is the same to the last bit. A
    state that can't be taken along is no error: the tokens are evaluated again.

    Args:
        context: The context it comes from.
        in_memory: Bytes up to which it is kept in memory; a larger one goes into a file that nobody else can read.
    """

    def __init__(self, context: Context, in_memory: int) -> None:
        self._tokens = list(context.sequences[0])
        self._state = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if not self._tokens:
            return
        if context.state_size(0) <= in_memory:
            self._state = context.save(0)
            return
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="tea-")
        except OSError:
            return
        if not context.save_file(0, self._file):
            self._drop()

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "state"

    def into(self, context: Context) -> int:
        """Put it into a new context and say how many tokens that saves."""
        taken = False
        if self._state is not None:
            taken = context.restore(0, self._state, self._tokens)
        elif self._folder is not None:
            taken = context.restore_file(0, self._file)
        return len(self._tokens) if taken else 0

    def _drop(self) -> None:
        self._state = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()
