"""Read a GGUF header: version, metadata and tensor infos; never the weights.

The reader goes forward over a sliding window of its source, without recursion. Arrays are stepped over and read when
they are asked for. No number from the file sizes an allocation or a loop before it was checked against what is left of
the file.

Rules are those of the GGUF specification (ggml/docs/gguf.md). Where llama.cpp is stricter (ggml/src/gguf.cpp), the file
is read and the reason is kept in `Header.problems`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tea_models.errors import MalformedGGUFError, TeaModelsError
from tea_models.gguf.arrays import ArrayValue, read_value_type
from tea_models.gguf.bytes_source import ByteSource
from tea_models.gguf.magic import MAGIC, foreign
from tea_models.gguf.types import GGML_TYPES, REMOVED_GGML_TYPES, SCALARS, GgmlType, ValueType
from tea_models.gguf.window import CUT_SHORT, Window

DEFAULT_ALIGNMENT = 32
MAX_KEY = 65535  # the specification's limit for a key, in bytes
MAX_KEYS = 1 << 16  # far above any real file; bounds the memory for a hostile one
MAX_TENSORS = 1 << 18
MAX_STRING = 48 << 20  # some files carry a whole tokenizer.json
MAX_DIMENSIONS = 4
MAX_TENSOR_NAME = 63  # GGML_MAX_NAME with its terminating zero
_LARGEST = (1 << 63) - 1
_SMALLEST_PAIR = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 4 + 8

Value = int | float | bool | str | ArrayValue


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An entry of the tensor table; its offset is in bytes after `Header.data_offset`, its shape as in the file."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        return self.elements // self.type.block_size * self.type.type_size


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says before its weights; its source must be open for arrays to be read."""

    version: int
    byte_order: str  # `little` or `big`
    alignment: int
    header_size: int  # bytes up to the end of the tensor infos
    data_offset: int  # `header_size` rounded up to the alignment
    metadata: Mapping[str, Value]
    value_types: Mapping[str, ValueType]
    tensors: tuple[TensorInfo, ...]
    problems: tuple[str, ...]  # why llama.cpp would not load it although it can be read
    notes: tuple[str, ...]  # what is odd about it and does no harm
    source: ByteSource = field(repr=False, compare=False)

    @property
    def file_size(self) -> int:
        """How big the file must be: up to the end of its last tensor."""
        ends = (self.data_offset + info.offset + info.size for info in self.tensors)
        return max(ends, default=self.header_size)


def read_header(source: ByteSource) -> Header:
    """Read and check the header of a GGUF file; a `MalformedGGUFError` says at which byte what was expected."""
    version, byte_order = _read_version(source)
    window = Window(source, byte_order=byte_order, start=8)
    reader = _Reader(window)
    tensor_count = window.unsigned(8, "the number of tensors")
    kv_count = window.unsigned(8, "the number of metadata pairs")
    window.check_count(tensor_count, _SMALLEST_TENSOR, "tensors", at=8, most=MAX_TENSORS)
    window.check_count(kv_count, _SMALLEST_PAIR, "metadata pairs", at=16, most=MAX_KEYS)
    for index in range(kv_count):
        reader.read_pair(index)
    alignment = reader.alignment()
    for index in range(tensor_count):
        reader.read_tensor(index)
    header_size = window.position
    data_offset = -(-header_size // alignment) * alignment
    reader.check_layout(data_offset, alignment)
    return Header(
        version=version,
        byte_order=byte_order,
        alignment=alignment,
        header_size=header_size,
        data_offset=data_offset,
        metadata=reader.metadata,
        value_types=reader.value_types,
        tensors=tuple(reader.tensors),
        problems=tuple(reader.problems),
        notes=tuple(reader.notes),
        source=source,
    )


def size_by_header(source: ByteSource) -> int | None:
    """How big the file must be that a source is the beginning of; None if its header can't be read (yet)."""
    try:
        return read_header(source).file_size
    except TeaModelsError:
        return None


def _read_version(source: ByteSource) -> tuple[int, str]:
    head = source.read(0, 512)
    if head and len(head) < 8 and (head.startswith(MAGIC) or MAGIC.startswith(head)):
        problem = f"expected the magic 'GGUF' and a version (8 bytes), the file ends at byte {len(head)}"
        raise MalformedGGUFError(source.name, offset=len(head) // 4 * 4, problem=problem, hint=CUT_SHORT)
    if not head.startswith(MAGIC):
        raise foreign(head, source.name)
    # A version is a small number: with the lower half empty it was written in the other byte order.
    byte_order: Literal["little", "big"] = "big" if head[4:6] == b"\0\0" and any(head[6:8]) else "little"
    version = int.from_bytes(head[4:8], byte_order)
    if version not in (2, 3):
        hint = "the file may be newer than this program: update tea-models"
        if version < 2:
            hint = "get a newer upload of the model; version 1 was replaced in 2023"
        raise MalformedGGUFError(source.name, offset=4, problem=f"expected version 2 or 3, found {version}", hint=hint)
    return version, byte_order


class _Reader:
    """The state of one reading: what was found so far, and where."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.metadata: dict[str, Value] = {}
        self.value_types: dict[str, ValueType] = {}
        self.tensors: list[TensorInfo] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._alignment_at = 0
        self._names: set[str] = set()
        self._offsets_at: list[int] = []

    def read_pair(self, index: int) -> None:
        window = self.window
        at = window.position
        length = window.unsigned(8, f"the length of key {index}")
        if not 1 <= length <= MAX_KEY:
            raise window.malformed(f"expected a key of 1 to {MAX_KEY:,} bytes, its length is {length:,}", at=at)
        raw = window.take_text(length, f"key {index}", at=at, most=MAX_KEY)
        if not raw.isascii():
            raise window.malformed(f"expected a key in ASCII, found {raw[:80]!r}", at=at + 8)
        key = raw.decode("ascii")
        if key in self.metadata:
            raise window.malformed(f"expected each key once, {_short(key)} is there twice", at=at)
        if key == "general.alignment":
            self._alignment_at = window.position
        self.value_types[key] = read_value_type(window, f"the type of {_short(key)}")
        self.metadata[key] = self._read_value(_short(key), self.value_types[key])

    def _read_value(self, key: str, value_type: ValueType) -> Value:
        window = self.window
        if value_type is ValueType.STRING:
            return self._read_string(key)
        if value_type is ValueType.ARRAY:
            array = ArrayValue(window, key)
            if array.item_type is ValueType.ARRAY:
                self.problems.append(f"{key} is an array of arrays, which llama.cpp does not read")
            return array
        at = window.position
        value = window.scalar(*SCALARS[value_type], f"the value of {key} ({value_type.label})")
        if value_type is ValueType.BOOL:
            if value not in (0, 1):
                raise window.malformed(f"expected 0 or 1 for the boolean {key}, found {value}", at=at)
            return bool(value)
        return value

    def _read_string(self, key: str) -> str:
        at = self.window.position
        length = self.window.unsigned(8, f"the length of {key}")
        raw = self.window.take_text(length, key, at=at, most=MAX_STRING)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.notes.append(f"{key} is not UTF-8 (byte {at + 8 + error.start:,}); bad bytes are shown as \\xNN")
            return raw.decode("utf-8", "backslashreplace")

    def alignment(self) -> int:
        """The alignment of the tensor data, from `general.alignment` or the default."""
        value = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        value_type = self.value_types.get("general.alignment", ValueType.UINT32)
        if value_type is not ValueType.UINT32 or not isinstance(value, int):
            problem = f"expected a uint32 for general.alignment, found {value_type.label}"
            raise self.window.malformed(problem, at=self._alignment_at)
        if value == 0:
            raise self.window.malformed("expected an alignment above 0, found 0", at=self._alignment_at + 4)
        if value & (value - 1):
            self.problems.append(f"general.alignment is {value:,}, llama.cpp reads powers of two only")
        elif value % 8:
            self.problems.append(f"general.alignment is {value}, the specification wants a multiple of 8")
        return value

    def read_tensor(self, index: int) -> None:
        window = self.window
        at = window.position
        length = window.unsigned(8, f"the length of the name of tensor {index}")
        raw = window.take_text(length, f"the name of tensor {index}", at=at, most=MAX_KEY)
        name = raw.decode("utf-8", "backslashreplace")
        shown = _short(name)
        if name in self._names:
            raise window.malformed(f"expected each tensor once, {shown} is there twice", at=at)
        self._names.add(name)
        if length > MAX_TENSOR_NAME:
            self.problems.append(f"tensor {shown}: its name has {length} bytes, llama.cpp reads up to 63")
        shape = self._read_shape(shown)
        kind = self._read_type(shown, shape)
        self._offsets_at.append(window.position)
        self.tensors.append(TensorInfo(name, shape, kind, window.unsigned(8, f"the offset of tensor {shown}")))

    def _read_shape(self, name: str) -> tuple[int, ...]:
        window = self.window
        at = window.position
        dimensions = window.unsigned(4, f"the number of dimensions of tensor {name}")
        if dimensions > MAX_DIMENSIONS:
            raise window.malformed(f"tensor {name}: expected up to 4 dimensions, found {dimensions:,}", at=at)
        at = window.position
        shape = tuple(window.unsigned(8, f"a dimension of tensor {name}") for _ in range(dimensions))
        if max(math.prod(shape), *shape, 0) > _LARGEST:
            raise window.malformed(f"tensor {name}: its shape {'x'.join(map(str, shape))} overflows 63 bits", at=at)
        if not math.prod(shape):
            self.problems.append(f"tensor {name} is empty (a dimension is 0)")
        return shape

    def _read_type(self, name: str, shape: tuple[int, ...]) -> GgmlType:
        window = self.window
        at = window.position
        number = window.unsigned(4, f"the type of tensor {name}")
        kind = GGML_TYPES.get(number)
        if kind is None:
            removed = REMOVED_GGML_TYPES.get(number)
            found = f"{number} ({removed}, which ggml has removed)" if removed else f"{number:,}, which is unknown"
            hint = "get a newer upload of the model" if removed else "a newer tea-models may know it"
            raise window.malformed(f"tensor {name}: its type is {found}", at=at, hint=hint)
        row = shape[0] if shape else 1
        if row % kind.block_size:
            problem = f"tensor {name}: its rows of {row:,} are not a multiple of {kind.name}'s {kind.block_size}"
            raise window.malformed(problem, at=at)
        return kind

    def check_layout(self, data_offset: int, alignment: int) -> None:
        """Check that the tensors' data are aligned, apart from each other and inside the file."""
        window, file_size = self.window, self.window.size
        expected = 0
        contiguous = True
        for info, at in zip(self.tensors, self._offsets_at, strict=True):
            name, start, end = _short(info.name), data_offset + info.offset, data_offset + info.offset + info.size
            if info.offset % alignment:
                raise window.malformed(
                    f"tensor {name}: its offset {info.offset:,} is not aligned to {alignment}", at=at
                )
            if file_size is not None and info.size and end > file_size:
                problem = f"tensor {name} needs bytes {start:,} to {end:,}, the file ends at byte {file_size:,}"
                raise window.malformed(problem, at=at if start > file_size else file_size, hint=CUT_SHORT)
            contiguous = contiguous and info.offset == expected
            expected += -(-info.size // alignment) * alignment
        if contiguous:
            return
        end, before = 0, ""
        by_offset = sorted(zip(self.tensors, self._offsets_at, strict=True), key=lambda item: item[0].offset)
        for info, at in by_offset:
            if info.size and info.offset < end:
                raise window.malformed(f"tensor {_short(info.name)} overlaps tensor {_short(before)}", at=at)
            if info.offset + info.size > end:
                end, before = info.offset + info.size, info.name
        self.problems.append("the tensors' data are not one after the other, as llama.cpp wants them")


def _short(name: str) -> str:
    return name if len(name) <= 80 else name[:77] + "…"
