"""A sliding window over a byte source: typed reads that know where they are and never go past the end."""

from __future__ import annotations

import struct
from contextlib import suppress
from itertools import repeat
from operator import length_hint

from tea_models.errors import MalformedGGUFError
from tea_models.gguf.bytes_source import ByteSource

WINDOW = 1 << 18  # bytes read at once
MAX_HEADER = 1 << 28  # the largest real ones have 2^25
MAX_TEXT = 1 << 26  # bytes of keys, names and string values together: what is held in memory
MAX_STEPS = 1 << 24  # strings and inner arrays stepped over in one header; the largest real vocabularies have 2^20

CUT_SHORT = "the file was cut short: fetch it again"


class Window:
    """Reads values at a position that moves forward; `byte_order` is `little` or `big`."""

    def __init__(self, source: ByteSource, *, byte_order: str, start: int) -> None:
        self.source = source
        self.byte_order = byte_order
        self.prefix = "<" if byte_order == "little" else ">"
        self.position = start
        self.size = source.size  # as it is known before the first read: of a stream that ends later nothing is judged
        self._end = MAX_HEADER if self.size is None else min(self.size, MAX_HEADER)
        self._steps = MAX_STEPS
        self._text = MAX_TEXT
        self._buffer = b""
        self._start = start

    def malformed(self, problem: str, *, at: int, hint: str = "") -> MalformedGGUFError:
        """An error about this file at byte `at`."""
        return MalformedGGUFError(self.source.name, offset=at, problem=problem, hint=hint)

    def take(self, length: int, what: str) -> bytes:
        """The next `length` bytes; the caller has bounded `length`."""
        begin = self._look_at(length, what)
        self.position += length
        return self._buffer[begin : begin + length]

    def scalar(self, code: str, size: int, what: str) -> int | float:
        """The next scalar, by its `struct` format."""
        value: int | float = struct.unpack(self.prefix + code, self.take(size, what))[0]
        return value

    def unsigned(self, size: int, what: str) -> int:
        """The next unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size, what), "little" if self.prefix == "<" else "big")

    def take_text(self, length: int, what: str, *, at: int, most: int) -> bytes:
        """The next `length` bytes (a length that was read at `at`), counted so that memory stays bounded."""
        self.check_count(length, 1, f"bytes of {what}", at=at, most=most)
        self._text -= length
        if self._text < 0:
            raise self.malformed(f"{what}: more than {MAX_TEXT:,} bytes of text in one header", at=at)
        return self.take(length, what)

    def check_count(self, count: int, smallest: int, what: str, *, at: int, most: int = MAX_HEADER) -> None:
        """Refuse a count (read at `at`) of things that need `smallest` bytes each."""
        left = max(0, self._end - self.position)
        if count > most:
            raise self.malformed(f"found {count:,} {what}, expected at most {most:,}", at=at)
        if count * smallest > left:
            raise self.malformed(f"{count:,} {what} do not fit into the {left:,} bytes left", at=at, hint=CUT_SHORT)

    def spend(self, steps: int, what: str, *, at: int) -> None:
        """Count things that have to be stepped over one by one, so that time stays bounded."""
        self._steps -= steps
        if self._steps < 0:
            raise self.malformed(f"{what}: more than {MAX_STEPS:,} strings and arrays in one header", at=at)

    def step_over_strings(self, count: int, what: str) -> list[tuple[int, int]]:
        """Step over strings; marks (index of a string, where it starts) about a window apart, from the first on."""
        marks: list[tuple[int, int]] = []
        unpack, every = struct.Struct(self.prefix + "Q").unpack_from, count
        while count:
            begin = at = self._look_at(8, f"the length of a string of {what}")
            marks.append((every - count, self.position))
            buffer, left = self._buffer, repeat(None, count)
            # The hot loop: half a million turns for a large vocabulary. Running off the window ends it, before the
            # string that is to be read next.
            with suppress(struct.error, OverflowError, IndexError):
                for _ in left:
                    begin, at = begin + 8 + unpack(buffer, begin)[0], begin
                count = 0
            if count:
                count = length_hint(left) + 1
            if self._start + begin > self._end:
                raise self.malformed(
                    f"a string of {what} has {begin - at - 8:,} bytes, the header ends at byte {self._end:,}",
                    at=self._start + at,
                    hint=CUT_SHORT,
                )
            self.position = self._start + begin
        return marks

    def _look_at(self, length: int, what: str) -> int:
        """Where the next `length` bytes are in the buffer, which is filled anew where they are not."""
        begin = self.position - self._start
        if begin >= 0 and begin + length <= len(self._buffer):
            return begin
        if self.position + length <= self._end:
            wanted = min(max(length, WINDOW), self._end - self.position)
            self._buffer, self._start = self.source.read(self.position, wanted), self.position
            if len(self._buffer) >= length:
                return 0
            self._end = self.position + len(self._buffer)
        limit = "the file ends at" if self._end < MAX_HEADER else "a header is read up to"
        problem = f"expected {what} ({length:,} byte{'s' * (length != 1)}), {limit} byte {self._end:,}"
        raise self.malformed(problem, at=self.position, hint=CUT_SHORT)
