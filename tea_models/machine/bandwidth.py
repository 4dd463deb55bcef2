"""How fast this machine reads its memory, which bounds how fast a model writes: every token reads all weights."""

from __future__ import annotations

import statistics
import time
from typing import Any

_BYTES = 128 << 20  # more than most caches hold
_ROUNDS = 5


def memory_bandwidth(threads: int, available: int) -> float | None:
    """Bytes a second that some threads read together, of an eighth of what is available; None if it can't be told."""
    import ctypes  # slow to import, as is the next
    from concurrent.futures import ThreadPoolExecutor

    try:
        search: Any = ctypes.CDLL(None).memchr
    except (OSError, AttributeError):
        return None
    search.restype, search.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    share = min(_BYTES, available // 8) // threads
    if share < 1 << 20:
        return None
    data = bytearray(b"\x55") * (share * threads)  # written, so that it is there
    start = ctypes.addressof(ctypes.c_char.from_buffer(data))

    def read(index: int) -> float:
        rates = []
        for _ in range(_ROUNDS):
            began = time.thread_time()  # what it computes: other programs change little in it
            search(start + index * share, 0, share)  # never found: it reads all; ctypes lets other threads run
            rates.append(share / max(1e-9, time.thread_time() - began))
        return statistics.median(rates)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(read, range(threads)))
