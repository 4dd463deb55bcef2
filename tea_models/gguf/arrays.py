"""Arrays of the metadata, read from the source only when their items are asked for."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tea_models.errors import MalformedGGUFError
from tea_models.gguf.types import SCALARS, ValueType
from tea_models.gguf.window import Window

MAX_DEPTH = 64
_CHUNK = 1 << 16


class ArrayValue:
    """An array in the metadata: its type and length are known, its items stay in the file from `start` to `end`."""

    def __init__(self, window: Window, what: str) -> None:
        """Read an array's type and length at the window's position and step over its items, which must fit."""
        self._source = window.source
        self._byte_order = window.byte_order
        self.item_type, self.count, at = _read_head(window, what)
        self.start = window.position
        self._marks = _step_over(window, self.item_type, self.count, what, at=at)
        self.end = window.position

    def __iter__(self) -> Iterator[Any]:
        """Its items; bad bytes in strings are shown as escapes, inner arrays are `ArrayValue`s."""
        if self.item_type is ValueType.STRING:
            return (raw.decode("utf-8", "backslashreplace") for raw in self.strings())
        window = self._window()
        if self.item_type is ValueType.ARRAY:
            return (ArrayValue(window, "an inner array") for _ in range(self.count))
        values = array(SCALARS[self.item_type][0], self._read(self.start, self.end))
        if self._byte_order != sys.byteorder:
            values.byteswap()
        return map(bool, values) if self.item_type is ValueType.BOOL else iter(values)

    def strings(self) -> Iterator[bytes]:
        """The items of an array of strings as bytes, a part of the file at a time; none of another array."""
        for _, data in self._parts():
            unpack, at, end = self._length.unpack_from, 0, len(data)
            while at < end:
                begin = at + 8
                at = begin + unpack(data, at)[0]
                yield data[begin:at]

    def text(self, index: int) -> str | None:
        """One string of an array of strings, or None where there is none of that index."""
        return next(iter(self.texts([index])), None) if 0 <= index < self.count else None

    def texts(self, indices: Iterable[int]) -> list[str]:
        """The strings of some indices in rising order (each below `count`), read from the nearest marks."""
        found, parts, unpack = [], self._parts(), self._length.unpack_from
        firsts = [*(first for first, _ in self._marks[1:]), self.count]
        (here, data), at, number = next(parts, (0, b"")), 0, 0
        for index in indices if data else ():
            while index >= firsts[number]:
                (here, data), at, number = next(parts), 0, number + 1
            while here < index:
                at, here = at + 8 + unpack(data, at)[0], here + 1
            found.append(data[at + 8 : at + 8 + unpack(data, at)[0]].decode("utf-8", "backslashreplace"))
        return found

    def find_first(self, texts: Sequence[str]) -> tuple[str, int] | None:
        """Of some texts the first one that is among the strings, with its index."""
        needles = [(text, self._length.pack(len(text.encode())) + text.encode()) for text in texts]
        best: tuple[str, int] | None = None
        for first, data in self._parts():
            for rank, (text, needle) in enumerate(needles):
                index = self._index_of(needle, first, data)
                if index is not None:
                    best = text, index
                    del needles[rank:]  # only what comes before it can still win
                    break
        return best

    def positions(self, value: int, most: int) -> list[int]:
        """Indices of the items of an `int32` array that equal a value, at most `most` of them."""
        needle, data = struct.pack(self._window().prefix + "i", value), self._read(self.start, self.end)
        found: list[int] = []
        at = data.find(needle)
        while at >= 0 and len(found) < most:
            if at % 4 == 0:
                found.append(at // 4)
            at = data.find(needle, at + 1)
        return found

    def _index_of(self, needle: bytes, index: int, data: bytes) -> int | None:
        """Index of the string that is `needle`, length and text, within a part that begins with string `index`."""
        at, found, unpack = 0, data.find(needle), self._length.unpack_from
        while found >= 0:
            while at < found:
                at, index = at + 8 + unpack(data, at)[0], index + 1
            if at == found:
                return index
            found = data.find(needle, found + 1)
        return None

    def _parts(self) -> Iterator[tuple[int, bytes]]:
        """The strings in parts, each with the index of its first one; a part ends where a string does."""
        ends = [*(start for _, start in self._marks[1:]), self.end]
        return ((first, self._read(start, end)) for (first, start), end in zip(self._marks, ends, strict=False))

    @property
    def _length(self) -> struct.Struct:
        return struct.Struct(self._window().prefix + "Q")

    def _window(self) -> Window:
        return Window(self._source, byte_order=self._byte_order, start=self.start)

    def _read(self, start: int, end: int) -> bytes:
        data = self._source.read(start, end - start)
        if len(data) < end - start:
            raise MalformedGGUFError(
                self._source.name,
                offset=start + len(data),
                problem="the file became shorter while it was read",
                hint="run the command again when nothing writes to the file",
            )
        return data


def _read_head(window: Window, what: str) -> tuple[ValueType, int, int]:
    """The item type and length of an array, and where the length stands."""
    item_type = read_value_type(window, f"the item type of {what}")
    at = window.position
    return item_type, window.unsigned(8, f"the length of {what}"), at


def read_value_type(window: Window, what: str) -> ValueType:
    """The number of a value type."""
    at = window.position
    number = window.unsigned(4, what)
    if number > ValueType.FLOAT64:
        raise window.malformed(f"expected a number from 0 to 12 for {what}, found {number}", at=at)
    return ValueType(number)


def _step_over(window: Window, item_type: ValueType, count: int, what: str, *, at: int) -> list[tuple[int, int]]:
    """Step over the items of an array; arrays in arrays with a list of counts in place of recursion. The last marks."""
    marks: list[tuple[int, int]] = []
    open_counts: list[int] = []
    while True:
        smallest = {ValueType.STRING: 8, ValueType.ARRAY: 12}.get(item_type) or SCALARS[item_type][1]
        window.check_count(count, smallest, f"items of {what}", at=at)
        if item_type in (ValueType.STRING, ValueType.ARRAY):
            window.spend(count, what, at=at)
        if item_type is ValueType.ARRAY:
            if len(open_counts) >= MAX_DEPTH:
                raise window.malformed(f"{what}: arrays lie in arrays more than {MAX_DEPTH} deep", at=at)
            open_counts.append(count)
        elif item_type is ValueType.STRING:
            marks = window.step_over_strings(count, what)
        elif item_type is ValueType.BOOL:
            _check_booleans(window, count, what)
        else:
            window.position += count * smallest
        while open_counts and not open_counts[-1]:
            open_counts.pop()
        if not open_counts:
            return marks
        open_counts[-1] -= 1
        item_type, count, at = _read_head(window, what)


def _check_booleans(window: Window, count: int, what: str) -> None:
    while count:
        at = window.position
        part = window.take(min(count, _CHUNK), what)
        bad = part.translate(None, b"\0\1")
        if bad:
            raise window.malformed(
                f"expected 0 or 1 in the booleans of {what}, found {bad[0]}", at=at + part.index(bad[:1])
            )
        count -= len(part)
