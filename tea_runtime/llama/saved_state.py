"""The state of a sequence on its way into another context: in memory where it is small, otherwise through a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

    from tea_runtime.llama.context import Context


class SavedState:
    """What a sequence of a context holds, taken out before the context is closed.

    Copying takes milliseconds where evaluating again takes seconds, and the continuation is the same to the last bit. A
    state that can't be taken along is no error: the tokens are evaluated again.
    """

    def __init__(self, context: Context, sequence: int, tokens: list[int], in_memory: int) -> None:
        self.tokens = list(tokens)
        self.size = 0
        self._state: ctypes.Array[ctypes.c_uint8] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if context.state_size(sequence) <= in_memory:
            self._state = context.save(sequence)
            self.size = len(self._state)
            return
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="tea-")
        except OSError:
            return
        if not context.save_file(sequence, self._file, tokens):
            self.close()

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "state"

    def into(self, context: Context, sequence: int) -> bool:
        """Put it into an empty sequence of a new context; False if that can't be done."""
        if self._state is not None:
            return context.restore(sequence, self._state)
        return self._folder is not None and context.restore_file(sequence, self._file) is not None

    def close(self) -> None:
        """Free it."""
        self._state = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
