"""GGUF files built byte by byte with `struct`, so that a test decides about every one of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TYPE_NUMBERS = {
    "uint8": 0,
    "int8": 1,
    "uint16": 2,
    "int16": 3,
    "uint32": 4,
    "int32": 5,
    "float32": 6,
    "bool": 7,
    "string": 8,
    "array": 9,
    "uint64": 10,
    "int64": 11,
    "float64": 12,
}
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
#: (weights in a block, bytes of a block) of the tensor types that tests use.
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 12: (256, 144), 14: (256, 210), 30: (1, 2)}
F32, F16, Q4_0, Q8_0, Q4_K, Q6_K = 0, 1, 2, 8, 12, 14


class BytesSource:
    """Bytes in memory; `name` is what the file is called in messages."""

    def __init__(self, data: bytes, name: str = "bytes") -> None:
        self.name = name
        self.size: int | None = len(data)
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Typed:
    """A metadata value with an explicit type; for arrays `type` is "array" and `item` the items' type."""

    type: str | int
    value: Any
    item: str | int | None = None


@dataclass(frozen=True)
class Tensor:
    """A tensor: `offset` None puts it after the one before; `data` None fills it with zeros."""

    name: str
    shape: tuple[int, ...]
    type: int = F32
    data: bytes | None = None
    offset: int | None = None


def typed(kind: str | int, value: Any) -> Typed:
    """A scalar of an explicit type: `typed("uint8", 5)`."""
    return Typed(kind, value)


def array(item: str | int, values: Iterable[Any]) -> Typed:
    """An array of an explicit item type: `array("int32", [1, 2])`; items of type "array" are `array(...)`s."""
    return Typed("array", list(values), item)


def build_gguf(
    metadata: Mapping[str, Any] | None = None,
    tensors: Iterable[Tensor] | None = None,
    *,
    version: int = 3,
    byte_order: str = "little",
    magic: bytes = b"GGUF",
    kv_count: int | None = None,
    tensor_count: int | None = None,
    with_data: bool = True,
) -> bytes:
    """Build a GGUF file.

    Args:
        metadata: Values by key: Python values (bool, int, float, str, list) or `typed`/`array`. Default: a small llama.
        tensors: The tensors. Default: those the default metadata need, or none when metadata are given.
        version: Version in the header.
        byte_order: "little" or "big".
        magic: The first four bytes.
        kv_count: Overrides the number of pairs in the header.
        tensor_count: Overrides the number of tensors in the header.
        with_data: Append the tensors' data.
    """
    prefix = "<" if byte_order == "little" else ">"
    if metadata is None:
        metadata = small_llama_metadata()
        tensors = small_llama_tensors(metadata) if tensors is None else tensors
    tensors = list(tensors or ())
    out = bytearray(magic)
    out += struct.pack(f"{prefix}IQQ", version, len(tensors) if tensor_count is None else tensor_count,
                       len(metadata) if kv_count is None else kv_count)  # fmt: skip
    for key, value in metadata.items():
        out += string(key, prefix) + _typed_value(value, prefix)
    alignment = _alignment(metadata)
    offset = 0
    placed = []
    for item in tensors:
        at = offset if item.offset is None else item.offset
        out += string(item.name, prefix) + struct.pack(f"{prefix}I", len(item.shape))
        out += b"".join(struct.pack(f"{prefix}Q", extent) for extent in item.shape)
        out += struct.pack(f"{prefix}IQ", item.type, at)
        data = item.data if item.data is not None else bytes(tensor_size(item)) if with_data else b""
        placed.append((at, data))
        offset = at + -(-(len(data) or tensor_size(item)) // alignment) * alignment
    if not with_data or not tensors:
        return bytes(out)
    out += bytes(-len(out) % alignment)
    start = len(out)
    for at, data in placed:
        out += bytes(max(0, start + at + len(data) - len(out)))
        out[start + at : start + at + len(data)] = data
    return bytes(out) + bytes(-len(out) % alignment)


def string(text: str | bytes, prefix: str = "<") -> bytes:
    """A string as GGUF writes it: its length, then its bytes."""
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack(f"{prefix}Q", len(raw)) + raw


def tensor_size(item: Tensor) -> int:
    """Bytes of a tensor's data (F32's four for a type this module doesn't know)."""
    block, size = BLOCKS.get(item.type, (1, 4))
    count = 1
    for extent in item.shape:
        count *= extent
    return count // block * size


def _alignment(metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    value = value.value if isinstance(value, Typed) else value
    return value if isinstance(value, int) and value > 0 else 32


def _typed_value(value: Any, prefix: str) -> bytes:
    if not isinstance(value, Typed):
        value = _infer(value)
    number = _number(value.type)
    return struct.pack(f"{prefix}I", number) + _payload(number, value, prefix)


def _payload(number: int, value: Typed, prefix: str) -> bytes:
    if number == 8:
        return string(value.value, prefix)
    if number == 9:
        assert value.item is not None
        item = _number(value.item)
        head = struct.pack(f"{prefix}IQ", item, len(value.value))
        if item in CODES:
            return head + struct.pack(f"{prefix}{len(value.value)}{CODES[item]}", *value.value)
        inner = (part if isinstance(part, Typed) else Typed(item, part) for part in value.value)
        return head + b"".join(_payload(item, part, prefix) for part in inner)
    return struct.pack(prefix + CODES.get(number, "I"), value.value)


def _number(kind: str | int) -> int:
    return kind if isinstance(kind, int) else TYPE_NUMBERS[kind]


def _infer(value: Any) -> Typed:
    if isinstance(value, bool):
        return Typed("bool", value)
    if isinstance(value, int):
        return Typed("uint32" if 0 <= value < 2**32 else "int32" if -(2**31) <= value < 0 else "uint64", value)
    if isinstance(value, float):
        return Typed("float32", value)
    if isinstance(value, str | bytes):
        return Typed("string", value)
    values = list(value)
    if values and isinstance(values[0], bool):
        return array("bool", values)
    if values and isinstance(values[0], int):
        return array("int32", values)
    if values and isinstance(values[0], float):
        return array("float32", values)
    if values and isinstance(values[0], list | tuple | Typed):
        return array("array", [part if isinstance(part, Typed) else _infer(part) for part in values])
    return array("string", values)


def small_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Texts, scores and types of a vocabulary that llama.cpp's `llama` tokenizer accepts, with every byte."""
    texts = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [2, 3, 3] + [6] * 256
    words = ["\u2581", "\u2581the", "e", "t", "h", "a", "o", "\u2581a", "n", "i", "s", "r", "th", "he", "\u2581t"]
    texts += [*words, "<|im_start|>", "<|im_end|>"]
    types += [1] * len(words) + [3, 3]
    texts += [f"<unused{index}>" for index in range(288 - len(texts))]
    types += [5] * (288 - len(types))
    scores = [-float(index) for index in range(len(texts))]
    return texts, scores, types


def small_llama_metadata(**overrides: Any) -> dict[str, Any]:
    """Metadata of a tiny llama that llama.cpp loads; `a__b="x"` overrides key `a.b`, None removes it."""
    texts, scores, types = small_vocabulary()
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Small Llama",
        "general.license": "mit",
        "general.file_type": 0,
        "llama.block_count": 2,
        "llama.context_length": 2048,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": len(texts),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": array("string", texts),
        "tokenizer.ggml.scores": array("float32", scores),
        "tokenizer.ggml.token_type": array("int32", types),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": CHATML,
    }
    return override(metadata, **overrides)


def override(metadata: Mapping[str, Any], **overrides: Any) -> dict[str, Any]:
    """A copy with keys replaced: `a__b="x"` sets `a.b`, None removes it."""
    merged = dict(metadata)
    for name, value in overrides.items():
        key = name.replace("__", ".")
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def small_llama_tensors(metadata: Mapping[str, Any] | None = None, *, type: int = F32) -> list[Tensor]:  # noqa: A002
    """The tensors that llama.cpp wants for such metadata (of any `llama`-like architecture), filled with zeros."""
    metadata = small_llama_metadata() if metadata is None else metadata
    plain = {key: value.value if isinstance(value, Typed) else value for key, value in metadata.items()}
    name = plain["general.architecture"]

    def of(key: str, default: int) -> int:
        value = plain.get(f"{name}.{key}", default)
        return value if isinstance(value, int) else default

    width, ff, blocks = of("embedding_length", 64), of("feed_forward_length", 128), of("block_count", 2)
    heads, kv_heads = of("attention.head_count", 4), of("attention.head_count_kv", 2)
    key_length, value_length = of("attention.key_length", width // heads), of("attention.value_length", width // heads)
    vocabulary = len(plain["tokenizer.ggml.tokens"])
    tensors = [Tensor("token_embd.weight", (width, vocabulary), type)]
    for block in range(blocks):
        tensors += [
            Tensor(f"blk.{block}.attn_norm.weight", (width,)),
            Tensor(f"blk.{block}.attn_q.weight", (width, heads * key_length), type),
            Tensor(f"blk.{block}.attn_k.weight", (width, kv_heads * key_length), type),
            Tensor(f"blk.{block}.attn_v.weight", (width, kv_heads * value_length), type),
            Tensor(f"blk.{block}.attn_output.weight", (heads * value_length, width), type),
            Tensor(f"blk.{block}.ffn_norm.weight", (width,)),
            Tensor(f"blk.{block}.ffn_gate.weight", (width, ff), type),
            Tensor(f"blk.{block}.ffn_up.weight", (width, ff), type),
            Tensor(f"blk.{block}.ffn_down.weight", (ff, width), type),
        ]
    return [*tensors, Tensor("output_norm.weight", (width,)), Tensor("output.weight", (width, vocabulary), type)]
