"""Seeded mutations of good headers: whatever the bytes are, only our own errors come out, soon and without much memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from tea_models.errors import TeaModelsError
from tea_models.gguf import ArrayValue, BytesSource, check_loadable, read_header
from tea_models.profile import from_json, profile_from_headers, to_json
from tea_models.profile.facts import ProfileFile
from tea_models.profile.inspection import json_value
from tests.gguf_build import Q4_K, Tensor, array, build_gguf, small_llama_metadata, small_llama_tensors, typed

SEED = 20261123
ROUNDS = 1000
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    13,
    255,
    1 << 16,
    1 << 31,
    (1 << 32) - 1,
    1 << 33,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)


def everything(data: bytes) -> bool:
    """Do with the bytes all that the commands do with a file; whether they were accepted."""
    source = BytesSource(data, "fuzzed.gguf")
    try:
        header = read_header(source)
        check_loadable(header)
        for value in header.metadata.values():
            json_value(value, full=True)
            if isinstance(value, ArrayValue):
                value.find(["<|im_end|>"])
        if not isinstance(header.metadata.get("tokenizer.chat_template"), str):
            profile = profile_from_headers([header], [ProfileFile("f", len(data), None)])
            assert from_json(to_json(profile)) == profile
    except TeaModelsError:
        return False
    return True


def mutate(data: bytes, chance: random.Random, header_size: int) -> bytes:
    """One to four changes: bits, bytes, numbers that break things, cuts, and pieces moved or doubled."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(header_size, len(out)) or 1)
        match chance.randrange(7):
            case 0:
                out[at] ^= 1 << chance.randrange(8)
            case 1:
                out[at] = chance.randrange(256)
            case 2:
                out[at : at + 8] = struct.pack("<Q", chance.choice(NUMBERS))
            case 3:
                out[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS) & 0xFFFFFFFF)
            case 4:
                del out[at + 1 if chance.random() < 0.3 else at : chance.randrange(at, len(out)) + 1]
            case 5:
                out[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 30)))
            case 6:
                other = chance.randrange(len(out))
                out[at:at] = out[other : other + chance.randrange(1, 60)]
        if not out:
            break
    return bytes(out)


def seeds() -> list[bytes]:
    plain = small_llama_metadata(tokenizer__chat_template=None)
    every = {
        f"t.{kind}": typed(kind, 1)
        for kind in ("uint8", "int8", "uint16", "int16", "uint64", "int64", "float64", "bool")
    }
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


@pytest.mark.parametrize("index", range(3))
def test_mutated_headers_are_read_or_refused_with_our_own_errors(index: int) -> None:
    data = seeds()[index]
    assert everything(data)
    chance = random.Random(SEED + index)
    header_size = read_header(BytesSource(data)).header_size
    tracemalloc.start()
    slowest, accepted = 0.0, 0
    for _ in range(ROUNDS):
        started = time.thread_time()
        accepted += everything(mutate(data, chance, header_size))
        slowest = max(slowest, time.thread_time() - started)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    assert slowest < 10
    assert 0 < accepted < ROUNDS


@pytest.mark.real
def test_mutations_of_the_real_header_are_read_or_refused_with_our_own_errors(real_model: Path) -> None:
    whole = real_model.read_bytes()[: 8 << 20]
    size = real_model.stat().st_size
    header_size = read_header(SizedSource(whole, size)).header_size
    chance = random.Random(SEED)
    # Most of a header is vocabulary; the fields around it are where mutations bite.
    interesting = [*range(2000), *range(header_size - 20_000, header_size)]
    refused = 0
    for _ in range(120):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.choice(interesting)
            number = chance.choice(NUMBERS)
            data[at : at + 8] = (
                struct.pack("<Q", number) if chance.random() < 0.7 else bytes([chance.randrange(256)]) * 8
            )
        try:
            header = read_header(SizedSource(bytes(data), size))
            check_loadable(header, thorough=False)
        except TeaModelsError:
            refused += 1
    assert refused


class SizedSource(BytesSource):
    """The beginning of a file whose size is that of the whole."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__(data, "real.gguf")
        self.size = size
