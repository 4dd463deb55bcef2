"""The body of an answer in batches that are big or late enough to be written."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tea_models.net.retry import TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tea_models.net.ranges import Part
    from tea_models.net.retry import RetryPolicy

_BATCH: Final = 1 << 20
_BATCH_SECONDS: Final = 0.25
_MAX_PIECES: Final = 256


def batches(pieces: Iterator[bytes], part: Part, policy: RetryPolicy) -> Iterator[list[bytes]]:
    """Collect what comes; the last batch comes also if the connection breaks, before the error.

    Args:
        pieces: The body as it arrives.
        part: Where it belongs: a batch is full when the part is.
        policy: Below which rate a connection counts as stalled.

    Raises:
        TransientError: The connection broke, or is too slow.
    """
    batch: list[bytes] = []
    size = window_size = 0
    yielded = window_began = time.monotonic()
    trouble: TransientError | None = None
    try:
        for piece in pieces:
            now = time.monotonic()
            batch.append(piece)
            size += len(piece)
            window_size += len(piece)
            if size >= min(_BATCH, max(1, part.left)) or len(batch) >= _MAX_PIECES or now - yielded >= _BATCH_SECONDS:
                yield batch
                batch, size, yielded = [], 0, now
            if now - window_began >= policy.stall_seconds:
                rate = window_size / (now - window_began)
                if rate < policy.min_rate:
                    trouble = TransientError(f"only {rate:.0f} bytes a second", silent=True)
                    break
                window_began, window_size = now, 0
    except TransientError as error:
        trouble = error
    if batch:
        yield batch
    if trouble is not None:
        raise trouble
