"""Arrays of the metadata, read from the source only when their items are asked for."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
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
        _step_over(window, self.item_type, self.count, what, at=at)
        self.end = window.position

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        """Its items; bad bytes in strings are shown as escapes, inner arrays are `ArrayValue`s."""
        if self.item_type is ValueType.STRING:
            return (raw.decode("utf-8", "backslashreplace") for raw in self.strings)
        window = self._window()
        if self.item_type is ValueType.ARRAY:
            return (ArrayValue(window, "an inner array") for _ in range(self.count))
        values = array(SCALARS[self.item_type][0], self._read())
        if self._byte_order != sys.byteorder:
            values.byteswap()
        return map(bool, values) if self.item_type is ValueType.BOOL else iter(values)

    @cached_property
    def strings(self) -> list[bytes]:
        """The items of an array of strings as bytes; none of another array."""
        found: list[bytes] = []
        if self.item_type is ValueType.STRING:
            data, unpack, at = self._read(), struct.Struct(self._window().prefix + "Q").unpack_from, 0
            end, append = len(data), found.append  # a quarter of a million turns
            while at < end:
                begin = at + 8
                at = begin + unpack(data, at)[0]
                append(data[begin:at])
        return found

    def text(self, index: int) -> str | None:
        """One string of an array of strings, or None where there is none of that index."""
        return self.strings[index].decode("utf-8", "backslashreplace") if 0 <= index < len(self.strings) else None

    def find_first(self, texts: Sequence[str]) -> tuple[str, int] | None:
        """Of some texts the first one that is among the strings, with its index."""
        wanted = {text.encode(): text for text in texts}
        found: dict[str, int] = {}
        for index, raw in enumerate(self.strings):
            if raw in wanted:
                found.setdefault(wanted[raw], index)
        return next(((text, found[text]) for text in texts if text in found), None)

    def _window(self) -> Window:
        return Window(self._source, byte_order=self._byte_order, start=self.start)

    def _read(self) -> bytes:
        data = self._source.read(self.start, self.end - self.start)
        if len(data) < self.end - self.start:
            raise MalformedGGUFError(
                self._source.name,
                offset=self.start + len(data),
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


def _step_over(window: Window, item_type: ValueType, count: int, what: str, *, at: int) -> None:
    """Step over the items of an array; arrays in arrays with a list of counts in place of recursion."""
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
            window.step_over_strings(count, what)
        elif item_type is ValueType.BOOL:
            _check_booleans(window, count, what)
        else:
            window.position += count * smallest
        while open_counts and not open_counts[-1]:
            open_counts.pop()
        if not open_counts:
            return
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
