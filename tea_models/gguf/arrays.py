"""Arrays of the metadata, read from the source only when their items are asked for."""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

from tea_models.errors import MalformedGGUFError
from tea_models.gguf.types import SCALARS, ValueType
from tea_models.gguf.window import MAX_HEADER, Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LENGTHS = {"little": struct.Struct("<Q"), "big": struct.Struct(">Q")}
MAX_DEPTH = 64
_CHUNK = 1 << 16


class _Part(NamedTuple):
    first: int  # index of its first string
    data: bytes


class ArrayValue:
    """An array in the metadata: its type and length are known, its items stay in the file.

    Attributes:
        item_type: Type of the items.
        count: Number of items.
        start: Byte offset of the first item.
        end: Byte offset after the last item.
    """

    __slots__ = ("_byte_order", "_marks", "_source", "count", "end", "item_type", "start")

    def __init__(
        self,
        window: Window,
        item_type: ValueType,
        count: int,
        *,
        span: tuple[int, int],
        marks: list[tuple[int, int]],
    ) -> None:
        self._source = window.source
        self._byte_order = window.byte_order
        self._marks = marks
        self.item_type = item_type
        self.count = count
        self.start, self.end = span

    def __repr__(self) -> str:
        return f"ArrayValue({self.item_type.label}, count={self.count})"

    def __len__(self) -> int:
        return self.count

    @classmethod
    def read(cls, window: Window, what: str) -> ArrayValue:
        """Read an array's type and length at the window's position and step over its items.

        Raises:
            MalformedGGUFError: An item type is unknown, a boolean is neither 0 nor 1, or the items do not fit.
        """
        item_type, count, at = _read_head(window, what)
        start = window.position
        marks: list[tuple[int, int]] = []
        if item_type is ValueType.ARRAY:
            _step_over_arrays(window, count, what, at=at)
        else:
            marks = _step_over_items(window, item_type, count, what, at=at)
        return cls(window, item_type, count, span=(start, window.position), marks=marks)

    def items(self) -> tuple[Any, ...]:
        """All items; bad bytes in strings are shown as escapes, inner arrays are `ArrayValue`s."""
        return tuple(self)

    def __iter__(self) -> Iterator[Any]:
        if self.item_type is ValueType.STRING:
            return (raw.decode("utf-8", "backslashreplace") for raw in self.raw_strings())
        if self.item_type is ValueType.ARRAY:
            return self._arrays()
        return self._scalars()

    def raw(self) -> bytes:
        """The bytes of all items as they are in the file."""
        return self._read(self.start, self.end)

    def text(self, index: int) -> str | None:
        """One string of an array of strings, or None where there is none of that index."""
        if self.item_type is not ValueType.STRING or not 0 <= index < self.count:
            return None
        return self.texts([index])[0]

    def texts(self, indices: Sequence[int]) -> list[str]:
        """The strings of some indices (each below `count`), read from the nearest marks."""
        offsets = [mark[1] for mark in self._marks] + [self.end]
        starts = [mark[0] for mark in self._marks]
        found: dict[int, str] = {}
        part, data = -1, b""
        for index in sorted(set(indices)):
            mark = bisect_right(starts, index) - 1
            if mark != part:
                part, data, at, here = mark, self._read(offsets[mark], offsets[mark + 1]), 0, starts[mark]
            while here < index:
                at += 8 + self._length.unpack_from(data, at)[0]
                here += 1
            begin = at + 8
            found[index] = data[begin : begin + self._length.unpack_from(data, at)[0]].decode(
                "utf-8", "backslashreplace"
            )
        return [found[index] for index in indices]

    def find_first(self, texts: Sequence[str]) -> tuple[str, int] | None:
        """Of some texts the first one that is among the strings, with its index."""
        needles = [(text, self._length.pack(len(raw := text.encode())) + raw) for text in texts]
        best: tuple[str, int] | None = None
        for part in self._parts():
            for rank, (text, needle) in enumerate(needles):
                index = self._search(part, needle)
                if index is not None:
                    best = (text, index)
                    del needles[rank:]  # only what comes before it can still win
                    break
        return best

    def _search(self, part: _Part, needle: bytes) -> int | None:
        """Index of the string that is `needle`, length and text, within a part of the array."""
        data, index = part.data, part.first
        found = data.find(needle)
        at = 0
        while found >= 0:
            while at < found:
                at += 8 + self._length.unpack_from(data, at)[0]
                index += 1
            if at == found:
                return index
            found = data.find(needle, found + 1)
        return None

    def _parts(self) -> Iterator[_Part]:
        """The strings in parts of about a window's length; a part ends where a string does."""
        if self.item_type is not ValueType.STRING:
            return
        ends = [*(mark[1] for mark in self._marks[1:]), self.end]
        for (index, start), end in zip(self._marks, ends, strict=False):
            yield _Part(index, self._read(start, end))

    def positions(self, value: int, *, most: int) -> list[int]:
        """Indices of the items of an `int32` array that equal a value, at most `most` of them."""
        needle = struct.pack(("<" if self._byte_order == "little" else ">") + "i", value)
        found: list[int] = []
        data = self.raw()
        at = data.find(needle)
        while at >= 0 and len(found) < most:
            if at % 4 == 0:
                found.append(at // 4)
                at += 3
            at = data.find(needle, at + 1)
        return found

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

    @property
    def _length(self) -> struct.Struct:
        return LENGTHS[self._byte_order]

    def raw_strings(self) -> Iterator[bytes]:
        """The strings of an array of strings as bytes, a part of the file at a time."""
        unpack = self._length.unpack_from
        for part in self._parts():
            at, end = 0, len(part.data)
            while at < end:
                begin = at + 8
                at = begin + unpack(part.data, at)[0]
                yield part.data[begin:at]

    def _arrays(self) -> Iterator[ArrayValue]:
        window = Window(self._source, byte_order=self._byte_order, start=self.start)
        for _ in range(self.count):
            yield ArrayValue.read(window, "an inner array")

    def _scalars(self) -> Iterator[int | float | bool]:
        code, size = SCALARS[self.item_type]
        window = Window(self._source, byte_order=self._byte_order, start=self.start)
        done = 0
        while done < self.count:
            part = min(_CHUNK, self.count - done)
            values = struct.unpack(f"{window.prefix}{part}{code}", window.take(part * size, "the items of an array"))
            yield from map(bool, values) if self.item_type is ValueType.BOOL else values
            done += part


def _read_head(window: Window, what: str) -> tuple[ValueType, int, int]:
    at = window.position
    number = window.unsigned(4, f"the item type of {what}")
    if number > ValueType.FLOAT64:
        raise window.malformed(f"expected an item type from 0 to 12 for {what}, found {number}", at=at)
    count = window.unsigned(8, f"the length of {what}")
    return ValueType(number), count, at + 4


def _step_over_items(window: Window, item_type: ValueType, count: int, what: str, *, at: int) -> list[tuple[int, int]]:
    if item_type is ValueType.STRING:
        window.check_count(count, 8, f"strings of {what}", at=at, most=MAX_HEADER)
        window.spend(count, what, at=at)
        return window.step_over_strings(count, what)
    size = SCALARS[item_type][1]
    window.check_count(count, size, f"items of {what}", at=at, most=MAX_HEADER)
    if item_type is ValueType.BOOL:
        _check_booleans(window, count, what)
    else:
        window.skip(count * size, what, at=at)
    return []


def _check_booleans(window: Window, count: int, what: str) -> None:
    left = count
    while left:
        at = window.position
        part = window.take(min(left, _CHUNK), what)
        bad = part.translate(None, b"\0\1")
        if bad:
            raise window.malformed(
                f"expected 0 or 1 in the booleans of {what}, found {bad[0]}", at=at + part.index(bad[:1])
            )
        left -= len(part)


def _step_over_arrays(window: Window, count: int, what: str, *, at: int) -> None:
    """Step over arrays in arrays with a list of counts in place of recursion."""
    window.check_count(count, 12, f"arrays of {what}", at=at, most=MAX_HEADER)
    window.spend(count, what, at=at)
    open_counts = [count]
    while open_counts:
        if not open_counts[-1]:
            open_counts.pop()
            continue
        open_counts[-1] -= 1
        item_type, inner, inner_at = _read_head(window, what)
        if item_type is not ValueType.ARRAY:
            _step_over_items(window, item_type, inner, what, at=inner_at)
            continue
        if len(open_counts) >= MAX_DEPTH:
            raise window.malformed(f"{what}: arrays lie in arrays more than {MAX_DEPTH} deep", at=inner_at)
        window.check_count(inner, 12, f"arrays of {what}", at=inner_at, most=MAX_HEADER)
        window.spend(inner, what, at=inner_at)
        open_counts.append(inner)
