"""What the header reader says about files that are right, against the `gguf` package and against the bytes."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tea_models.gguf.arrays import ArrayValue
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import Header, read_header
from tea_models.gguf.types import FILE_TYPES, GGML_TYPES, REMOVED_FILE_TYPES, REMOVED_GGML_TYPES, ValueType
from tests.gguf_build import Q4_K, BytesSource, Tensor, array, build_gguf, small_llama_metadata, typed

EVERY_TYPE: dict[str, Any] = {
    "a.uint8": typed("uint8", 250),
    "a.int8": typed("int8", -7),
    "a.uint16": typed("uint16", 65000),
    "a.int16": typed("int16", -30000),
    "a.uint32": typed("uint32", 4_000_000_000),
    "a.int32": typed("int32", -2_000_000_000),
    "a.float32": typed("float32", 0.1),
    "a.bool": typed("bool", True),
    "a.string": typed("string", "grüße ✓"),
    "a.uint64": typed("uint64", 2**63 + 5),
    "a.int64": typed("int64", -(2**62)),
    "a.float64": typed("float64", 0.1),
    "a.array": array("uint16", [1, 2, 65535]),
}


def read(data: bytes) -> Header:
    return read_header(BytesSource(data))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_every_value_type_is_read_in_both_versions_and_byte_orders(version: int, byte_order: str) -> None:
    header = read(build_gguf(EVERY_TYPE, version=version, byte_order=byte_order))
    assert (header.version, header.byte_order, len(header.metadata)) == (version, byte_order, 13)
    assert [header.value_types[key].label for key in EVERY_TYPE] == [key.partition(".")[2] for key in EVERY_TYPE]
    for key, value in EVERY_TYPE.items():
        found = header.metadata[key]
        if isinstance(found, ArrayValue):
            assert tuple(found) == (1, 2, 65535)
        else:
            expected = struct.unpack("f", struct.pack("f", 0.1))[0] if key == "a.float32" else value.value
            assert found == expected
            assert type(found) is type(expected)


@pytest.mark.parametrize("item", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_arrays_of_every_integer_type_are_read(item: str, byte_order: str) -> None:
    values = (1, 2, 100) if item.startswith("u") else (-1, 2, -100)
    header = read(build_gguf({"a": array(item, values), "after": 7}, byte_order=byte_order))
    assert tuple(header.metadata["a"]) == values  # type: ignore[union-attr]
    assert header.metadata["after"] == 7


def test_arrays_of_the_other_types_are_read() -> None:
    header = read(
        build_gguf(
            {
                "floats": array("float32", [0.5, -2.0]),
                "doubles": array("float64", [0.1]),
                "flags": array("bool", [True, False]),
                "texts": array("string", ["", "a", "ü" * 300]),
                "empty": array("string", []),
            }
        )
    )
    found = {key: tuple(value) for key, value in header.metadata.items()}  # type: ignore[union-attr]
    assert found == {
        "floats": (0.5, -2.0),
        "doubles": (0.1,),
        "flags": (True, False),
        "texts": ("", "a", "ü" * 300),
        "empty": (),
    }


def test_nested_arrays_are_read_and_reported_as_not_loadable() -> None:
    inner = [array("int32", [1, 2]), array("string", ["x", "y"]), array("array", [array("bool", [True])])]
    header = read(build_gguf({"nested": array("array", inner), "after": 7}))
    first, second, third = tuple(header.metadata["nested"])  # type: ignore[union-attr]
    assert (tuple(first), tuple(second), tuple(*third)) == ((1, 2), ("x", "y"), (True,))
    assert header.metadata["after"] == 7
    assert any("array of arrays" in problem for problem in header.problems)


def test_sixty_four_levels_of_arrays_are_read_without_recursion() -> None:
    value = array("int32", [7])
    for _ in range(64):
        value = array("array", [value])
    header = read(build_gguf({"deep": value, "after": 7}))
    assert header.metadata["after"] == 7


def test_tensors_have_name_shape_type_offset_and_size() -> None:
    header = read(build_gguf({}, [Tensor("a", (3, 5)), Tensor("b", (256, 2), Q4_K), Tensor("c", ())]))
    assert [(t.name, t.shape, t.type.name, t.offset, t.size) for t in header.tensors] == [
        ("a", (3, 5), "F32", 0, 60),
        ("b", (256, 2), "Q4_K", 64, 288),
        ("c", (), "F32", 352, 4),
    ]
    assert header.tensors[1].elements == 512
    assert header.data_offset == -(-header.header_size // 32) * 32
    assert header.problems == ()


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_the_alignment_of_the_file_is_followed(alignment: int) -> None:
    header = read(build_gguf({"general.alignment": alignment}, [Tensor("a", (3,)), Tensor("b", (3,))]))
    assert header.alignment == alignment
    assert header.data_offset % alignment == 0
    assert header.tensors[1].offset == -(-12 // alignment) * alignment
    assert header.problems == ()


def test_a_vocabulary_larger_than_the_window_is_stepped_over_and_searched() -> None:
    texts = [f"t{index}" * (1 + index % 9) for index in range(60_000)] + ["<|im_end|>", "long" * 100_000, "last"]
    for byte_order in ("little", "big"):
        tokens = read(build_gguf({"t": array("string", texts), "after": 1}, byte_order=byte_order)).metadata["t"]
        assert isinstance(tokens, ArrayValue)
        assert [tokens.text(index) for index in (0, 59_999, 60_001)] == [texts[0], texts[59_999], texts[60_001]]
        assert tokens.text(60_002) == "last"
        assert tokens.text(60_003) is None
        assert tokens.find_first(["absent", "<|im_end|>", "t12345" * 7]) == ("<|im_end|>", 60_000)
        assert tokens.find_first(["t12345" * 7, "<|im_end|>"]) == ("t12345" * 7, 12_345)
        assert tokens.find_first(["absent"]) is None
        assert list(tokens) == texts


def test_a_text_inside_another_string_is_not_taken_for_a_token() -> None:
    disguised = struct.pack("<Q", 3) + b"abc"
    tokens = read(build_gguf({"t": array("string", [b"x" + disguised, "y", "abc"])})).metadata["t"]
    assert tokens.find_first(["abc"]) == ("abc", 2)  # type: ignore[union-attr]


def test_text_that_is_not_utf8_is_shown_with_its_bytes_and_noted() -> None:
    header = read(build_gguf({"general.name": b"a\xffb"}))
    assert header.metadata["general.name"] == "a\\xffb"
    assert "not UTF-8" in header.notes[0]


def test_not_a_number_and_infinity_are_read() -> None:
    header = read(build_gguf({"nan": math.nan, "inf": typed("float64", math.inf)}))
    assert math.isnan(header.metadata["nan"])  # type: ignore[arg-type]
    assert header.metadata["inf"] == math.inf


def test_every_tensor_type_of_the_gguf_package_is_known_with_its_sizes() -> None:
    ours = {number: (kind.name, kind.block_size, kind.type_size) for number, kind in GGML_TYPES.items()}
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        assert ours[int(kind)] == (kind.name, block, size)
    assert not set(REMOVED_GGML_TYPES) & set(ours)
    assert set(range(max(ours))) <= set(ours) | set(REMOVED_GGML_TYPES)


def test_every_file_type_of_the_gguf_package_is_known_by_its_name() -> None:
    for kind in gguf.LlamaFileType:
        if kind.name == "GUESSED":
            continue
        name, main = FILE_TYPES[int(kind)]
        assert name == kind.name.removeprefix("ALL_").removeprefix("MOSTLY_")
        assert main in {item.name for item in GGML_TYPES.values()}
    assert set(range(max(FILE_TYPES))) <= set(FILE_TYPES) | set(REMOVED_FILE_TYPES)


def test_every_value_type_of_the_gguf_package_is_known() -> None:
    assert {kind.name: int(kind) for kind in gguf.GGUFValueType} == {kind.name: int(kind) for kind in ValueType}


def assert_same_as_gguf(path: Path) -> Header:
    """All scalars, array types and lengths, and the tensor table are what the `gguf` package reads."""
    with FileSource(path) as source:
        header = read_header(source)
    reader = gguf.GGUFReader(path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(fields) == list(header.metadata)
    for key, field in fields.items():
        ours = header.metadata[key]
        if isinstance(ours, ArrayValue):
            assert (int(field.types[-1]), len(field.data)) == (int(ours.item_type), ours.count), key
        else:
            theirs = field.contents()
            assert ours == theirs or (ours != ours and theirs != theirs), key
    assert reader.data_offset == header.data_offset
    assert [(t.name, tuple(int(n) for n in t.shape), int(t.tensor_type), int(t.n_bytes)) for t in reader.tensors] == [
        (t.name, t.shape, t.type.id, t.size) for t in header.tensors
    ]
    assert [int(t.data_offset) - reader.data_offset for t in reader.tensors] == [t.offset for t in header.tensors]
    return header


@pytest.mark.parametrize("endian", [gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG])
@pytest.mark.parametrize("version", [2, 3])
def test_files_written_by_the_gguf_package_read_the_same(tmp_path: Path, endian: gguf.GGUFEndian, version: int) -> None:
    path = tmp_path / "every.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    for kind in gguf.GGUFValueType:
        if kind is not gguf.GGUFValueType.ARRAY:
            value: Any = {"STRING": "text", "BOOL": True, "FLOAT32": 0.1, "FLOAT64": 0.1}.get(kind.name, 100)
            writer.add_key_value(f"t.{kind.name}", value, kind)
            writer.add_key_value(f"l.{kind.name}", [value] * 3, gguf.GGUFValueType.ARRAY, sub_type=kind)
    for name, kind in (
        ("f32", np.float32),
        ("f16", np.float16),
        ("f64", np.float64),
        ("i8", np.int8),
        ("i32", np.int32),
    ):
        writer.add_tensor(name, np.zeros((3, 8), dtype=kind))
    for name, kind, size in (("q8", gguf.GGMLQuantizationType.Q8_0, 34), ("q4", gguf.GGMLQuantizationType.Q4_K, 144)):
        writer.add_tensor(name, np.zeros((2, size), dtype=np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    data[4:8] = version.to_bytes(4, "little" if endian is gguf.GGUFEndian.LITTLE else "big")
    path.write_bytes(data)
    header = assert_same_as_gguf(path)
    assert (header.version, header.byte_order) == (version, endian.name.lower())


def test_the_default_built_file_reads_the_same_with_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(build_gguf())
    header = assert_same_as_gguf(path)
    assert list(header.metadata) == list(small_llama_metadata())


@pytest.mark.real
def test_smollm2_reads_the_same_with_the_gguf_package(real_model: Path) -> None:
    assert_same_as_gguf(real_model)


@pytest.mark.real
def test_the_262144_tokens_of_gemma_are_there(gemma_model: Path) -> None:
    with FileSource(gemma_model) as source:
        header = read_header(source)
    assert header.metadata["tokenizer.ggml.tokens"].count == 262_144  # type: ignore[union-attr]
