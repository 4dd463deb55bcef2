"""The hash that follows the download: it reads what was just written, up to the first byte that is missing."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, Final

from tea_models.disk.hashing import hash_range

if TYPE_CHECKING:
    from tea_models.net.partial import PartialFile

_STRIDE: Final = 8 << 20


class FrontierHasher:
    """Hashes a partial in its own thread (reading and hashing leave Python's lock, so the network goes on).

    Args:
        partial: The file.
        checked: How many bytes at its beginning were hashed in an earlier run, and what their SHA-256 was.
    """

    def __init__(self, partial: PartialFile, checked: tuple[int, str]) -> None:
        self.checkpoint = (0, hashlib.sha256().hexdigest())
        self.error: OSError | None = None
        self.foreign = False
        self._partial = partial
        self._promised = checked
        self._target = 0
        self._stopped = False
        self._wake = threading.Condition()
        self._digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        partial.enter()
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether it has given up: the file can't be read, or its beginning is not what it was."""
        return self.error is not None or self.foreign

    def follow(self, frontier: int) -> None:
        """All bytes before `frontier` are in the file now."""
        if frontier > self._target:
            with self._wake:
                self._target = frontier
                self._wake.notify()

    def done(self, total: int) -> bool:
        """Whether all of `total` bytes are hashed."""
        return self.checkpoint[0] >= total or self.failed

    def wait(self, total: int, timeout: float) -> bool:
        """Wait until all of `total` bytes are hashed, or the time is over."""
        with self._wake:
            return self._wake.wait_for(lambda: self.done(total), timeout)

    @property
    def checked(self) -> tuple[int, str]:
        """The longest beginning whose hash is known, be it from this run or an earlier one."""
        return max(self.checkpoint, self._promised) if not self.foreign else (0, "")

    def stop(self, patience: float = 0.5) -> None:
        """End the thread; for a moment it may catch up with what was written, so that a later run can trust that."""
        with self._wake:
            self._wake.wait_for(lambda: self.done(self._target), patience)
            self._stopped = True
            self._wake.notify_all()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._stopped or self._target > self.checkpoint[0])
                    target = self._target
                if self._stopped or not self._advance(target):
                    return
        except OSError as error:
            self.error = error
        finally:
            self._partial.leave()
            with self._wake:
                self._wake.notify_all()

    def _advance(self, target: int) -> bool:
        position = self.checkpoint[0]
        length, expected = self._promised
        while position < target and not self._stopped:
            end = min(target, position + _STRIDE)
            if position < length < end:
                end = length
            reached = hash_range(self._partial.descriptor, position, end, self._digest)
            if reached != end:
                raise OSError(0, "the partial file shrank while it was read", str(self._partial.path))
            position = end
            digest = self._digest.copy().hexdigest()
            if position == length and expected and digest != expected:
                self.foreign = True
                return False
            with self._wake:
                self.checkpoint = (position, digest)
                self._wake.notify_all()
        return True
