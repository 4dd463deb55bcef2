"""Which bytes are there, which are missing, and who fetches which of them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

ENDLESS: Final = 1 << 62
MIB: Final = 1 << 20
# A part is big enough that its request costs nothing beside it, small enough that the hash keeps up behind.
SMALLEST_PART: Final = 8 * MIB
LARGEST_PART: Final = 128 * MIB
_SMALLEST_SPLIT: Final = 128 << 10
_WORTH_HELPING: Final = 2.0  # seconds that a connection still needs


class Ranges:
    """A set of bytes as sorted, disjoint ranges `[start, end)`."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> int:
        """Add a range; returns how many of its bytes are new."""
        if end <= start:
            return 0
        first = bisect_left(self._ends, start)
        last = first
        low, high, had = start, end, 0
        while last < len(self._starts) and self._starts[last] <= end:
            low, high = min(low, self._starts[last]), max(high, self._ends[last])
            had += self._ends[last] - self._starts[last]
            last += 1
        self._starts[first:last] = [low]
        self._ends[first:last] = [high]
        self.total += (new := high - low - had)
        return new

    def frontier(self) -> int:
        """Where the first missing byte is."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def missing(self, end: int) -> list[tuple[int, int]]:
        """The gaps before `end`."""
        gaps = zip([0, *self._ends], [*self._starts, end], strict=True)
        return [(start, min(stop, end)) for start, stop in gaps if start < min(stop, end)]

    def clipped(self, end: int) -> Ranges:
        """The same without anything from `end` on."""
        return Ranges((first, min(last, end)) for first, last in self if first < end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from zip(self._starts, self._ends, strict=True)


@dataclass(slots=True, eq=False)
class Part:
    """A range that one connection fetches. `end` may move towards `position` while it does (see `Board.take`)."""

    position: int
    end: int
    began: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    got: int = 0
    patience: float = 1.0  # doubled when it is taken over: two slow connections must not pass it on for ever

    @property
    def left(self) -> int:
        return max(0, self.end - self.position)

    def rate(self, now: float) -> float:
        """Bytes a second since the part was begun."""
        return self.got / max(now - self.began, 1e-3)

    def seconds_left(self, now: float) -> float:
        """How long it will take at the speed so far."""
        return self.left / self.rate(now) if self.got else float("inf")


class Board:
    """Hands out parts, one endless one while `total` is unknown. Not thread-safe: whoever calls holds a lock."""

    def __init__(self, done: Ranges, total: int | None, connections: int) -> None:
        self.done, self.total = done, total
        self.active: list[Part] = []
        self._connections = connections
        self._queue: list[tuple[int, int]] = done.missing(ENDLESS if total is None else total)

    @property
    def part_size(self) -> int:
        """How big a part is that nobody has begun."""
        if self._connections == 1 or self.total is None:
            return ENDLESS
        return min(LARGEST_PART, max(SMALLEST_PART, self.total // (4 * self._connections)))

    def take(self, *, silent_seconds: float, rate: float = 0.0) -> Part | None:
        """The next missing part, else some of a slow or silent connection, as fits the asker's `rate` (bytes/s)."""
        if self._queue:
            start, end = self._queue.pop(0)
            if end - start > self.part_size:
                self._queue.insert(0, (start + self.part_size, end))
                end = start + self.part_size
            part: Part | None = Part(start, end)
        else:
            part = self._steal(silent_seconds, rate)
        if part is not None:
            self.active.append(part)
        return part

    def give_back(self, part: Part) -> None:
        """Stop working on a part; what it lacks can be taken again."""
        self.active.remove(part)
        if part.left:
            self._queue.append((part.position, part.end))
            self._queue.sort()

    def learn_total(self, total: int) -> None:
        """The size is known now: cut the endless part, so that others can help."""
        self.total = total
        self._queue = [(start, min(end, total)) for start, end in self._queue if start < total]
        for part in self.active:
            part.end = min(part.end, total)
            if part.left > self.part_size:
                self._queue.insert(0, (part.position + self.part_size, part.end))
                part.end = part.position + self.part_size

    def only(self, part: Part) -> None:
        """One connection brings everything from the position of its part on."""
        self._queue.clear()
        part.end = ENDLESS if self.total is None else self.total

    @property
    def complete(self) -> bool:
        return self.total is not None and self.done.frontier() >= self.total

    def _steal(self, silent_seconds: float, rate: float) -> Part | None:
        """Take over all from a silent connection, or the end of what a slow one has before it; the slowest first."""
        now = time.monotonic()
        for part in sorted(self.active, key=lambda one: -one.seconds_left(now)):
            if not part.left or part.end == ENDLESS:
                continue
            if now - part.heard >= silent_seconds * part.patience:
                stolen = Part(part.position, part.end, patience=2 * part.patience)
                part.end = part.position
                return stolen
            seconds = part.seconds_left(now)
            if part.got and seconds >= _WORTH_HELPING and part.left >= 2 * _SMALLEST_SPLIT:
                its_rate = part.rate(now)
                kept = int(part.left * its_rate / (its_rate + (rate or its_rate)))
                stolen = Part(part.position + max(_SMALLEST_SPLIT, kept), part.end)
                part.end = stolen.position
                return stolen
        return None
