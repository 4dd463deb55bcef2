"""Headers that hypothesis makes and breaks: whatever the bytes are, only our own errors come out, without much memory."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_models.errors import TeaModelsError
from tea_models.gguf.arrays import ArrayValue
from tea_models.gguf.header import read_header
from tea_models.gguf.loadable import check_loadable, check_tokenizable
from tea_models.profile.document import from_json, to_json
from tea_models.profile.facts import ProfileFile
from tea_models.profile.header_facts import profile_from_headers
from tea_models.profile.inspection import json_value
from tests.gguf_build import (
    Q4_K,
    BytesSource,
    Tensor,
    Typed,
    array,
    build_gguf,
    small_llama_metadata,
    small_llama_tensors,
    typed,
)

MANY = settings(max_examples=12 * settings.default.max_examples)
NUMBERS = st.sampled_from(
    [*range(14), 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 33, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
)
INTEGERS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int32": (-(1 << 31), (1 << 31) - 1),
            "uint32": (0, (1 << 32) - 1), "int64": (-(1 << 63), (1 << 63) - 1), "uint64": (0, (1 << 64) - 1)}  # fmt: skip


def everything(data: bytes) -> bool:
    """Do with the bytes all that the commands do with a file; whether they were accepted."""
    try:
        header = read_header(BytesSource(data, "fuzzed.gguf"))
        check_loadable(header)
        check_tokenizable(header)
        for value in header.metadata.values():
            json_value(value, full=True)
            if isinstance(value, ArrayValue):
                value.find_first(["<|im_end|>"])
        if not isinstance(header.metadata.get("tokenizer.chat_template"), str):
            profile = profile_from_headers([header], [ProfileFile("f", len(data), None)])
            assert from_json(to_json(profile)) == profile
    except TeaModelsError:
        return False
    return True


def seeds() -> list[bytes]:
    plain = small_llama_metadata(tokenizer__chat_template=None)
    every = {f"t.{kind}": typed(kind, 1) for kind in [*INTEGERS, "float64", "bool"]}
    nested = {"n": array("array", [array("array", [array("string", ["a", "b"])]), array("bool", [True, False])])}
    return [
        build_gguf(
            {"general.architecture": "llama"} | every | nested, [Tensor("a", (256, 2), Q4_K), Tensor("b", (3,))]
        ),
        build_gguf(
            {"general.architecture": "llama", "general.alignment": 64} | nested, [Tensor("a", (8,))], byte_order="big"
        ),
        build_gguf(plain, small_llama_tensors(plain), with_data=False) + bytes(500_000),
    ]


SEEDS = [(data, read_header(BytesSource(data)).header_size) for data in seeds()]


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A good header with one to four changes: bits, bytes, numbers that break things, cuts, pieces moved or doubled."""
    data, size = draw(st.sampled_from(SEEDS))
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(size, len(out)) - 1)))
        match draw(st.sampled_from(["bits", "number", "short number", "cut", "insert", "double"])):
            case "bits":
                out[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                out[at : at + 8] = struct.pack("<Q", draw(NUMBERS))
            case "short number":
                out[at : at + 4] = struct.pack("<I", draw(NUMBERS) & 0xFFFFFFFF)
            case "cut":
                del out[at : draw(st.integers(at, len(out)))]
            case "insert":
                out[at:at] = draw(st.binary(min_size=1, max_size=30))
            case "double":
                other = draw(st.integers(0, len(out)))
                out[at:at] = out[other : other + draw(st.integers(1, 60))]
    return bytes(out)


@pytest.mark.parametrize("seed", range(3))
def test_the_seeds_are_good(seed: int) -> None:
    assert everything(SEEDS[seed][0])


@MANY
@given(broken())
def test_broken_headers_are_read_or_refused_with_our_own_errors(data: bytes) -> None:
    tracemalloc.start()
    try:
        everything(data)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@MANY
@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 5), st.integers(0, 5))
def test_arbitrary_bytes_after_a_good_beginning_are_read_or_refused(
    data: bytes, version: int, tensors: int, pairs: int
) -> None:
    everything(b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + data)


def values(kind: str) -> st.SearchStrategy[object]:
    if kind == "string":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    return st.booleans() if kind == "bool" else st.integers(*INTEGERS[kind])


KINDS = st.sampled_from([*INTEGERS, "string", "bool"])
KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)
SCALARS = KINDS.flatmap(lambda kind: values(kind).map(lambda value: (typed(kind, value), value)))
ARRAYS = KINDS.flatmap(lambda kind: st.lists(values(kind), max_size=5).map(lambda items: (array(kind, items), items)))
METADATA = st.dictionaries(KEYS.filter(lambda key: key != "general.alignment"), SCALARS | ARRAYS, max_size=8)


@given(METADATA, st.sampled_from(["little", "big"]))
def test_what_is_written_is_what_is_read(pairs: dict[str, tuple[Typed, object]], byte_order: str) -> None:
    written = {key: value for key, (value, _) in pairs.items()}
    header = read_header(BytesSource(build_gguf(written, byte_order=byte_order)))
    read = {key: list(value) if isinstance(value, ArrayValue) else value for key, value in header.metadata.items()}
    assert read == {key: value for key, (_, value) in pairs.items()}
