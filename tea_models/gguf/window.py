"""A sliding window over a byte source: typed reads that know where they are and never go past the end."""

from __future__ import annotations

import struct
from contextlib import suppress
from itertools import repeat
from operator import length_hint
from typing import TYPE_CHECKING

from tea_models.errors import MalformedGGUFError

if TYPE_CHECKING:
    from tea_models.gguf.bytes_source import ByteSource

WINDOW = 1 << 18  # bytes read at once
MAX_HEADER = 1 << 28  # the largest real ones have 2^25
MAX_TEXT = 1 << 26  # bytes of keys, names and string values together: what is held in memory
MAX_STEPS = 1 << 24  # strings and inner arrays stepped over in one header; the largest real vocabularies have 2^20

_CUT_SHORT = "the file was cut short: fetch it again"


class Window:
    """Reads values at a position that moves forward.

    Args:
        source: Where the bytes come from.
        byte_order: `little` or `big`.
        start: First position.
    """

    def __init__(self, source: ByteSource, *, byte_order: str, start: int) -> None:
        self.source = source
        self.size = source.size
        self.byte_order = byte_order
        self.prefix = "<" if byte_order == "little" else ">"
        self.position = start
        self.steps = MAX_STEPS
        self.text = MAX_TEXT
        self._order: dict[int, struct.Struct] = {
            4: struct.Struct(self.prefix + "I"),
            8: struct.Struct(self.prefix + "Q"),
        }
        self._buffer = b""
        self._start = start

    def malformed(self, problem: str, *, at: int, hint: str = "") -> MalformedGGUFError:
        """An error about this file at byte `at`."""
        return MalformedGGUFError(self.source.name, offset=at, problem=problem, hint=hint)

    @property
    def left(self) -> int:
        """Bytes between the position and the end of the file, or of the longest header that is read."""
        end = MAX_HEADER if self.size is None else min(self.size, MAX_HEADER)
        return max(0, end - self.position)

    def take(self, length: int, what: str, *, at: int | None = None) -> bytes:
        """The next `length` bytes; the caller has bounded `length`. `at` is where an error is reported."""
        begin = self.position - self._start
        if begin < 0 or begin + length > len(self._buffer):
            self._fill(length, what, at)
            begin = 0
        self.position += length
        return self._buffer[begin : begin + length]

    def scalar(self, code: str, size: int, what: str) -> int | float:
        """The next scalar, by its `struct` format."""
        value: int | float = struct.unpack(self.prefix + code, self.take(size, what))[0]
        return value

    def unsigned(self, size: int, what: str) -> int:
        """The next unsigned integer of 4 or 8 bytes."""
        begin = self.position - self._start
        if begin < 0 or begin + size > len(self._buffer):
            self._fill(size, what, None)
            begin = 0
        self.position += size
        value: int = self._order[size].unpack_from(self._buffer, begin)[0]
        return value

    def skip(self, length: int, what: str, *, at: int) -> None:
        """Step over bytes without reading them."""
        self.check_length(length, what, at=at, most=MAX_HEADER)
        self.position += length

    def check_length(self, length: int, what: str, *, at: int, most: int) -> None:
        """Refuse a length (read at `at`) that the file can't hold or that is beyond any real file."""
        if length > self._left_in_file:
            raise self.malformed(f"{what} has {length:,} bytes, {self.left:,} are left", at=at, hint=_CUT_SHORT)
        if length > min(most, self.left):
            raise self.malformed(f"{what} has {length:,} bytes, expected at most {min(most, self.left):,}", at=at)

    def check_count(self, count: int, smallest: int, what: str, *, at: int, most: int) -> None:
        """Refuse a count (read at `at`) of things that need `smallest` bytes each."""
        if count * smallest > self._left_in_file:
            raise self.malformed(
                f"{count:,} {what} need {count * smallest:,} bytes or more, {self.left:,} are left",
                at=at,
                hint=_CUT_SHORT,
            )
        if count > most or count * smallest > self.left:
            most = min(most, self.left // smallest)
            raise self.malformed(f"found {count:,} {what}, expected at most {most:,}", at=at)

    @property
    def _left_in_file(self) -> int:
        return (MAX_HEADER if self.size is None else self.size) - self.position

    def spend(self, steps: int, what: str, *, at: int) -> None:
        """Count things that have to be stepped over one by one, so that time stays bounded."""
        self.steps -= steps
        if self.steps < 0:
            raise self.malformed(f"{what}: more than {MAX_STEPS:,} strings and arrays in one header", at=at)

    def take_text(self, length: int, what: str, *, at: int) -> bytes:
        """The next `length` bytes, counted so that memory stays bounded."""
        self.text -= length
        if self.text < 0:
            raise self.malformed(f"{what}: more than {MAX_TEXT:,} bytes of text in one header", at=at)
        return self.take(length, what, at=at)

    def step_over_strings(self, count: int, what: str) -> list[tuple[int, int]]:
        """Step over `count` strings.

        Returns:
            Marks (index of a string, byte offset where it starts) about a window apart, the first string's first.
        """
        marks: list[tuple[int, int]] = []
        unpack = self._order[8].unpack_from
        done = 0
        while done < count:
            begin = self.position - self._start
            if begin < 0 or begin + 8 > len(self._buffer):
                self._fill(8, f"the length of a string of {what}", None)
                begin = 0
            buffer, start = self._buffer, self._start
            marks.append((done, self.position))
            left = repeat(None, count - done)
            # The hot loop: half a million turns for a large vocabulary. Running off the window ends it, before the
            # string that is to be read next.
            with suppress(struct.error, OverflowError, IndexError):
                for _ in left:
                    begin += 8 + unpack(buffer, begin)[0]
                done = count
            if done < count:
                done = count - length_hint(left) - 1
            if start + begin > self.position + self.left:
                raise self._string_past_end(what)
            self.position = start + begin
        return marks

    def _string_past_end(self, what: str) -> MalformedGGUFError:
        unpack = self._order[8].unpack_from
        end = self.position + self.left
        at = self.position
        while True:
            length = unpack(self._buffer, at - self._start)[0]
            if at + 8 + length > end:
                return self.malformed(
                    f"a string of {what} has {length:,} bytes, {max(0, end - at - 8):,} are left",
                    at=at,
                    hint=_CUT_SHORT,
                )
            at += 8 + length

    def _fill(self, length: int, what: str, at: int | None) -> None:
        at = self.position if at is None else at
        if length > self.left:
            if self.size is not None and self.position + length <= self.size:
                raise self.malformed(f"the header is longer than {MAX_HEADER:,} bytes", at=at)
            raise self._ends(length, what, at, self.position + self.left)
        wanted = max(length, WINDOW)
        if self.size is not None:
            wanted = min(wanted, self.size - self.position)
        data = self.source.read(self.position, wanted)
        self._buffer, self._start = data, self.position
        if len(data) < length:
            raise self._ends(length, what, at, self.position + len(data))

    def _ends(self, length: int, what: str, at: int, end: int) -> MalformedGGUFError:
        unit = "byte" if length == 1 else "bytes"
        return self.malformed(
            f"expected {what} ({length:,} {unit}), the file ends at byte {end:,}", at=at, hint=_CUT_SHORT
        )
