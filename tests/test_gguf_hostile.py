"""Malformed headers, byte by byte: what is refused, at which byte, and what is read but not loadable."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tea_models.errors import AccessDeniedError, MalformedGGUFError, MissingFileError
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import Header, read_header
from tea_models.gguf.loadable import check_loadable
from tests.gguf_build import F16, Q4_K, BytesSource, Tensor, array, build_gguf, string, typed

HUGE = (1 << 64) - 1


def read(data: bytes) -> Header:
    return read_header(BytesSource(data, "file.gguf"))


def refused(data: bytes) -> MalformedGGUFError:
    with pytest.raises(MalformedGGUFError) as caught:
        read(data)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith(f"file.gguf: byte {caught.value.offset:,}: ")
    assert len(caught.value.message) < 400
    return caught.value


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def head(tensors: int = 0, pairs: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return string(key) + u32(kind) + payload


# -- cut short ---------------------------------------------------------------------------------------------------------


def test_a_small_file_cut_at_any_byte_is_refused_inside_what_is_left() -> None:
    whole = build_gguf(
        {
            "general.architecture": "llama",
            "a": array("string", ["x", "yz"]),
            "n": array("array", [array("bool", [True])]),
        },
        [Tensor("t", (2, 3)), Tensor("u", (8,))],
    )
    last_byte = read(whole).data_offset + 32 + 32
    for length in range(last_byte):
        error = refused(whole[:length])
        assert error.offset <= length
    assert len(read(whole[:last_byte]).tensors) == 2


def test_a_file_cut_in_its_weights_says_which_tensor_and_how_much() -> None:
    whole = build_gguf({}, [Tensor("first", (1024,)), Tensor("second", (1024,))])
    error = refused(whole[:-100])
    assert error.offset == len(whole) - 100
    assert "second" in error.problem
    assert f"{len(whole):,}" in error.problem
    assert "fetch it again" in error.hint


# -- magic and version -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "found"),
    [
        (b"", "empty"),
        (b"\0" * 64, "zeros"),
        (b"FUGG" + bytes(20), "bytes swapped"),
        (b"lmgg" + bytes(20), "GGML"),
        (b"tjgg" + bytes(20), "GGJT"),
        (b"PK\x03\x04" + bytes(20), "ZIP"),
        (u64(100) + b'{"__metadata__":{}}', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'\n {"error": "gated"}', "JSON"),
        (b"\x80\x02}", "pickle"),
        (b"ELF?", "ELF?"),
    ],
)
def test_other_formats_are_told_apart_by_their_first_bytes(start: bytes, found: str) -> None:
    error = refused(start)
    assert error.offset == 0
    assert found in error.problem


@pytest.mark.parametrize("version", [0, 1, 4, 0x10000, 0xFFFFFFFF])
def test_other_versions_are_refused(version: int) -> None:
    error = refused(head(version=version))
    assert error.offset == 4
    assert "expected version 2 or 3" in error.problem


# -- counts and lengths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 1 << 20, 1 << 40, (1 << 61) + 1, 1 << 63, HUGE])
@pytest.mark.parametrize("offset", [8, 16])
def test_counts_that_the_file_cannot_hold_are_refused_before_anything_is_read(count: int, offset: int) -> None:
    data = head(count, 0) if offset == 8 else head(0, count)
    assert refused(data).offset == offset


def test_counts_beyond_any_real_file_are_refused_however_large_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(head(0, 1 << 30))
        file.truncate(1 << 40)
    with FileSource(path) as source, pytest.raises(MalformedGGUFError, match="at most 65,536"):
        read_header(source)


@pytest.mark.parametrize("length", [0, 65536, 1 << 32, 1 << 62, HUGE])
def test_keys_that_are_empty_or_too_long_are_refused(length: int) -> None:
    data = head(0, 1) + u64(length) + bytes(70_000)
    error = refused(data)
    assert error.offset == 24
    assert "1 to 65,535" in error.problem


def test_a_key_that_is_not_ascii_is_refused() -> None:
    error = refused(head(0, 1) + pair("größe", 4, u32(1)) + bytes(9))
    assert error.offset == 32
    assert "ASCII" in error.problem


def test_a_key_that_is_there_twice_is_refused_at_the_second() -> None:
    first = pair("a", 4, u32(1))
    assert refused(head(0, 2) + first + pair("a", 4, u32(2))).offset == 24 + len(first)


@pytest.mark.parametrize("kind", [13, 255, 1 << 31, (1 << 32) - 1])
def test_unknown_value_types_are_refused(kind: int) -> None:
    error = refused(head(0, 1) + pair("key", kind, bytes(16)))
    assert error.offset == 24 + 11
    assert str(kind) in error.problem


@pytest.mark.parametrize("kind", [13, 1 << 31])
def test_unknown_item_types_are_refused(kind: int) -> None:
    error = refused(head(0, 1) + pair("key", 9, u32(kind) + u64(1) + bytes(16)))
    assert error.offset == 24 + 15


@pytest.mark.parametrize("value", [2, 0x80, 255])
def test_a_boolean_other_than_0_and_1_is_refused(value: int) -> None:
    error = refused(head(0, 1) + pair("key", 7, bytes([value])))
    assert error.offset == 24 + 15
    assert f"found {value}" in error.problem


def test_a_boolean_other_than_0_and_1_is_refused_inside_an_array_too() -> None:
    items = bytes(100_000) + b"\x02" + bytes(10)
    error = refused(head(0, 1) + pair("key", 9, u32(7) + u64(len(items)) + items))
    assert error.offset == 24 + 15 + 12 + 100_000


@pytest.mark.parametrize("length", [17, 1 << 40, 1 << 63, HUGE - 7, HUGE])
def test_a_string_longer_than_the_rest_is_refused_at_its_length(length: int) -> None:
    assert refused(head(0, 1) + pair("key", 8, u64(length) + bytes(16))).offset == 24 + 15


@pytest.mark.parametrize("length", [17, 1 << 40, 1 << 63, HUGE - 7, HUGE])
def test_a_string_in_an_array_longer_than_the_rest_is_refused_at_its_length(length: int) -> None:
    data = head(0, 1) + pair("key", 9, u32(8) + u64(3) + string("ab") + u64(length) + bytes(16))
    assert refused(data).offset == 24 + 15 + 12 + 10


@pytest.mark.parametrize("count", [5, 1 << 33, 1 << 61, 1 << 63, HUGE])
@pytest.mark.parametrize("kind", [0, 5, 7, 8, 9, 12])
def test_an_array_longer_than_the_rest_is_refused_at_its_count(count: int, kind: int) -> None:
    error = refused(head(0, 1) + pair("key", 9, u32(kind) + u64(count) + bytes(4)))
    assert error.offset == 24 + 15 + 4


def test_arrays_nested_without_end_are_refused() -> None:
    depth = 100_000
    data = head(0, 1) + pair("key", 9, (u32(9) + u64(1)) * depth + u32(0) + u64(0))
    assert "deep" in refused(data).problem


def test_a_wide_nest_of_arrays_is_refused_in_bounded_time() -> None:
    # Each inner array claims as many children as would fit into the rest.
    data = head(0, 1) + pair("key", 9, u32(9) + u64(100_000) + (u32(9) + u64(40_000)) * 100_000)
    started = time.thread_time()
    refused(data)
    assert time.thread_time() - started < 20


def test_a_sparse_file_of_empty_strings_is_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(head(0, 1) + pair("key", 9, u32(8) + u64((1 << 24) + 1)))
        file.truncate(1 << 40)
    tracemalloc.start()
    with FileSource(path) as source, pytest.raises(MalformedGGUFError, match="strings and arrays in one header"):
        read_header(source)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_text_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(head(0, 4))
        for index in range(4):
            file.write(pair(f"k{index}", 8, u64(40 << 20)))
            file.seek(40 << 20, os.SEEK_CUR)
        file.truncate(1 << 40)
    tracemalloc.start()
    with FileSource(path) as source, pytest.raises(MalformedGGUFError, match="bytes of text in one header"):
        read_header(source)
    assert tracemalloc.get_traced_memory()[1] < 128 << 20
    tracemalloc.stop()


def test_an_endless_architecture_does_not_make_endless_messages() -> None:
    header = read(
        build_gguf({"general.architecture": "x" * 100_000, "tokenizer.ggml.model": "none"}, [Tensor("a", (8,))])
    )
    assert max(map(len, check_loadable(header))) < 200


def test_a_sparse_file_of_many_gib_with_a_good_header_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(build_gguf({"general.architecture": "x"}, [Tensor("t", (1 << 33,))], with_data=False))
        file.truncate((1 << 35) + 4096)
    with FileSource(path) as source:
        assert read_header(source).tensors[0].size == 1 << 35


# -- alignment and tensors ---------------------------------------------------------------------------------------------


def test_an_alignment_of_zero_is_refused() -> None:
    error = refused(build_gguf({"general.alignment": 0}, [Tensor("t", (1,))]))
    assert error.offset == 24 + 8 + 17 + 4


@pytest.mark.parametrize(
    "value",
    [typed("uint64", 32), typed("int32", 32), typed("string", "32"), array("uint32", [32]), typed("float32", 32.0)],
)
def test_an_alignment_of_the_wrong_type_is_refused(value: Any) -> None:
    error = refused(build_gguf({"general.alignment": value}))
    assert error.offset == 24 + 8 + 17
    assert "uint32" in error.problem


@pytest.mark.parametrize("alignment", [24, 40, 48, 1000])
def test_an_alignment_that_is_no_power_of_two_is_read_and_reported_as_not_loadable(alignment: int) -> None:
    header = read(build_gguf({"general.alignment": alignment}, [Tensor("a", (3,)), Tensor("b", (3,))]))
    assert header.tensors[1].offset == alignment
    assert "powers of two" in header.problems[0]


def one_tensor(**changes: Any) -> tuple[bytes, dict[str, int]]:
    """A file with one tensor written by hand, and where each of its fields lies."""
    fields = {
        "name": string("weight"),
        "dimensions": u32(2),
        "shape": u64(4) + u64(2),
        "type": u32(0),
        "offset": u64(0),
    } | changes
    at, places = 24, {}
    for name, raw in fields.items():
        places[name] = at
        at += len(raw)
    data = head(1, 0) + b"".join(fields.values())
    return data + bytes(-len(data) % 32 + 64), places


@pytest.mark.parametrize("dimensions", [5, 64, 1 << 31, (1 << 32) - 1])
def test_too_many_dimensions_are_refused(dimensions: int) -> None:
    data, places = one_tensor(dimensions=u32(dimensions))
    assert refused(data).offset == places["dimensions"]


@pytest.mark.parametrize("shape", [(1 << 63, 1), (HUGE, HUGE), (1 << 32, 1 << 32), (1 << 62, 2), (0, HUGE)])
def test_shapes_whose_product_overflows_are_refused(shape: tuple[int, int]) -> None:
    data, places = one_tensor(shape=u64(shape[0]) + u64(shape[1]))
    error = refused(data)
    assert error.offset == places["shape"]
    assert "overflows" in error.problem


@pytest.mark.parametrize(
    ("number", "word"), [(4, "Q4_2"), (31, "Q4_0_4_4"), (38, "IQ4_NL_8_8"), (43, "unknown"), (HUGE >> 32, "unknown")]
)
def test_unknown_and_removed_tensor_types_are_refused(number: int, word: str) -> None:
    data, places = one_tensor(type=u32(number))
    error = refused(data)
    assert error.offset == places["type"]
    assert word in error.problem


def test_rows_that_do_not_divide_into_blocks_are_refused() -> None:
    data, places = one_tensor(type=u32(Q4_K))
    error = refused(data)
    assert error.offset == places["type"]
    assert "256" in error.problem


@pytest.mark.parametrize("offset", [1, 4, 31, 33])
def test_a_misaligned_offset_is_refused(offset: int) -> None:
    data, places = one_tensor(offset=u64(offset))
    assert refused(data).offset == places["offset"]


@pytest.mark.parametrize("offset", [1 << 20, 1 << 40, 1 << 63, HUGE - 31])
def test_data_that_start_outside_of_the_file_are_refused_at_their_offset(offset: int) -> None:
    data, places = one_tensor(offset=u64(offset))
    assert refused(data).offset == places["offset"]


def test_overlapping_tensors_are_refused() -> None:
    data = build_gguf({}, [Tensor("a", (64,)), Tensor("b", (64,), offset=128), Tensor("c", (64,), offset=512)])
    error = refused(data)
    assert "b overlaps tensor a" in error.problem


def test_a_gap_between_tensors_is_read_and_reported_as_not_loadable() -> None:
    header = read(build_gguf({}, [Tensor("a", (8,)), Tensor("b", (8,), offset=96)]))
    assert "one after the other" in header.problems[0]


def test_tensors_out_of_order_are_read_and_reported_as_not_loadable() -> None:
    header = read(build_gguf({}, [Tensor("a", (8,), offset=32), Tensor("b", (8,), offset=0)]))
    assert "one after the other" in header.problems[0]


def test_a_tensor_that_is_there_twice_is_refused() -> None:
    assert "twice" in refused(build_gguf({}, [Tensor("a", (8,)), Tensor("a", (8,))])).problem


@pytest.mark.parametrize(("length", "problems"), [(63, 0), (64, 1), (5000, 1)])
def test_a_tensor_name_over_63_bytes_is_read_and_reported_as_not_loadable(length: int, problems: int) -> None:
    header = read(build_gguf({}, [Tensor("n" * length, (8,), F16)]))
    assert len(header.tensors[0].name) == length
    assert len(header.problems) == problems


def test_an_empty_tensor_is_read_and_reported() -> None:
    header = read(build_gguf({}, [Tensor("a", (0, 4)), Tensor("b", (8,))]))
    assert header.tensors[0].size == 0
    assert "empty" in header.problems[0]


# -- paths -------------------------------------------------------------------------------------------------------------


def test_paths_that_are_no_files_are_refused_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    dangling, loop = tmp_path / "dangling.gguf", tmp_path / "loop.gguf"
    dangling.symlink_to("nowhere")
    loop.symlink_to(loop)
    for path, word in [
        (tmp_path, "directory"),
        (fifo, "FIFO"),
        (Path("/dev/zero"), "device"),
        (dangling, "leads nowhere"),
        (loop, "circle"),
        (tmp_path / "absent.gguf", "no such file"),
        (tmp_path / "a.gguf" / "b", "no such file"),
        (Path("nul\0.gguf"), "not a path"),
    ]:
        with pytest.raises(MissingFileError, match=word) as caught:
            FileSource(path)
        assert caught.value.exit_code == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(build_gguf())
    path.chmod(0)
    with pytest.raises(AccessDeniedError, match="permission"):
        FileSource(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "shrinking.gguf"
    path.write_bytes(build_gguf({"t": array("string", ["x" * 100] * 20_000), "n": 1}))
    with FileSource(path) as source:
        os.truncate(path, 300_000)
        with pytest.raises(MalformedGGUFError, match="ends at byte"):
            read_header(source)


def test_arrays_of_a_file_that_shrank_after_its_header_was_read_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "shrinking.gguf"
    path.write_bytes(build_gguf({"t": array("string", ["x" * 100] * 20_000), "n": 1}))
    with FileSource(path) as source:
        tokens = read_header(source).metadata["t"]
        os.truncate(path, 300_000)
        with pytest.raises(MalformedGGUFError, match="became shorter"):
            tokens.text(19_999)  # type: ignore[union-attr]
        with pytest.raises(MalformedGGUFError, match="became shorter"):
            tokens.find_first(["absent"])  # type: ignore[union-attr]
        with pytest.raises(MalformedGGUFError):
            tuple(tokens)  # type: ignore[union-attr]
