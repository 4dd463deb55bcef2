"""The hash that follows the download: it reads what was just written, up to the first byte that is missing."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Final

from tea_models.disk.hashing import hash_range
from tea_models.net.answers import StaleError
from tea_models.net.partial import PartialFile

_STRIDE: Final = 8 << 20


class FrontierHasher:
    """Hashes a partial in a thread; `promised`: bytes hashed by an earlier run, and their hash, else `fail` is told."""

    def __init__(self, partial: PartialFile, promised: tuple[int, str], fail: Callable[[Exception], None]) -> None:
        self.checkpoint = (0, hashlib.sha256().hexdigest())
        self._partial, self._promised, self._fail = partial, promised, fail
        self._target = 0
        self._stopped = False
        self._wake = threading.Condition()
        self._digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def follow(self, frontier: int) -> None:
        """All bytes before `frontier` are in the file now."""
        if frontier > self._target:
            with self._wake:
                self._target = frontier
                self._wake.notify()

    def wait(self, length: int, timeout: float) -> bool:
        """Wait a moment; whether `length` bytes are hashed."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopped or self.checkpoint[0] >= length, timeout)
            return self.checkpoint[0] >= length

    @property
    def checked(self) -> tuple[int, str]:
        """The longest beginning whose hash is known, be it from this run or an earlier one."""
        return max(self.checkpoint, self._promised)

    def stop(self) -> None:
        """End the thread; for a moment it may catch up with what was written, so that a later run can trust that."""
        self.wait(self._target, 0.5)
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._advance()
        except (OSError, StaleError) as error:
            self._fail(error)
        finally:
            with self._wake:
                self._stopped = True
                self._wake.notify_all()

    def _advance(self) -> None:
        """Wait for bytes, and hash some."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopped or self._target > self.checkpoint[0])
            start, end = self.checkpoint[0], min(self._target, self.checkpoint[0] + _STRIDE)
        length, expected = self._promised
        if start < length < end:
            end = length
        if hash_range(self._partial.descriptor, start, end, self._digest) != end:
            raise OSError(0, "the partial file shrank while it was read", str(self._partial.path))
        digest = self._digest.copy().hexdigest()
        if start < end == length and digest != expected:
            raise StaleError(f"{self._partial.path}: what an earlier run left was damaged", plain=False)
        with self._wake:
            self.checkpoint = (end, digest)
            self._wake.notify_all()
