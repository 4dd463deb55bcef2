"""Whether llama.cpp can load a file that reads well: what would make its loader fail, or kill the process.

Each rule names where it comes from in llama.cpp. Files that are not loaded as models (adapters, projectors, importance
matrices) are judged by their layout alone.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from tea_models.gguf.arrays import ArrayValue
from tea_models.gguf.types import ValueType
from tea_models.gguf.vocabulary import default_adds, default_ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tea_models.gguf.header import Header, Value

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
_LAST_POOLING = 4  # LLAMA_POOLING_TYPE_RANK; another one aborts when the first text is embedded
_ROPE_SCALING = ("none", "linear", "yarn", "longrope")
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.group_norm_epsilon")
_WITHOUT_VOCABULARY = ("none", "no_vocab")
_WITH_MERGES = ("gpt2", "gemma4", "hybriddna", "whitespace")
_ALWAYS_WITH_BOS = ("gemma4", "granite-embed-multi-311m")  # pre-tokenizers that add one whatever the file says
_WITHOUT_BOS = ("chatglm-bpe", "glm4", "glm5")  # pre-tokenizers that have none unless the file names one
_SEPARATOR = 102  # special_sep_id of `bert`
_BYTE_TYPE = 6  # LLAMA_TOKEN_TYPE_BYTE
_ESCAPES = {ord("t"): 9, ord("n"): 10, ord("r"): 13}
_BYTE_TEXTS = frozenset(b"<0x%02X>" % byte for byte in range(256))
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z")  # llama_split_prefix
_NOT_MODELS = ("adapter", "mmproj", "imatrix")


def check_loadable(header: Header, *, thorough: bool = True) -> tuple[str, ...]:
    """Reasons why the native loader must not be given this file; empty when there are none.

    Args:
        header: The header of the file, its source open; of a model in several files, the first is judged by what it
            says and the others by their layout.
        thorough: Also look for a token that is there twice, which takes 0.1 s for a large vocabulary.
    """
    found = list(header.problems)
    if header.byte_order != sys.byteorder:
        found.append(f"the file is {header.byte_order}-endian, this machine is not")
    metadata = header.metadata
    if not is_loaded(header):
        return tuple(found)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        return (*found, "general.architecture is missing")
    parts = metadata.get("split.count")
    if isinstance(parts, int) and parts > 1 and not _SHARD.search(header.source.name):
        found.append(f"it is one of {parts:,} files, but its name does not end in -NNNNN-of-{parts:05d}.gguf")
    vocabulary = _Vocabulary(metadata).check(thorough=thorough)
    has_weights = bool(header.tensors) or "split.count" in metadata
    layers = _Hyperparameters(metadata, header.value_types, architecture).check() if has_weights else []
    return (*found, *layers, *vocabulary)


def check_tokenizable(header: Header) -> tuple[str, ...]:
    """Reasons why llama.cpp would load this file and then die of the first text; empty when there are none.

    Args:
        header: The header of a (first) file that `check_loadable` has no objection to, its source open.
    """
    return tuple(_Vocabulary(header.metadata).check_tokenizing()) if is_loaded(header) else ()


def is_loaded(header: Header) -> bool:
    """Whether llama.cpp's loader of models is given this file by its name.

    It is not given adapters, projectors and importance matrices, nor the later files of a model, which it finds itself:
    all that describes the model is in the first.
    """
    metadata = header.metadata
    part = metadata.get("split.no")
    if isinstance(part, int) and part > 0:
        return False
    return metadata.get("general.type") not in _NOT_MODELS and metadata.get("general.architecture") != "clip"


class _Hyperparameters:
    """`llama_model_base::load_hparams`."""

    def __init__(self, metadata: Mapping[str, Value], value_types: Mapping[str, ValueType], architecture: str) -> None:
        self.metadata = metadata
        self.types = value_types
        self.architecture = architecture
        self.shown = architecture if len(architecture) <= 40 else f"{architecture[:39]}…"
        self.problems: list[str] = []

    def check(self) -> list[str]:
        self._required("context_length", least=1)
        self._required("embedding_length", least=1)
        layers = self._required("block_count", least=1, most=_MAX_LAYERS)
        if layers is None:
            return self.problems
        nextn = self._optional("nextn_predict_layers")
        if nextn > layers:
            self.problems.append(f"{self._shown('nextn_predict_layers')} is {nextn:,}, beyond {layers} blocks")
        for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_used_count"):
            self._per_layer(name, layers)
        pooling = self.metadata.get(self._key("pooling_type"))
        if isinstance(pooling, int) and not 0 <= pooling <= _LAST_POOLING:
            self.problems.append(f"{self._shown('pooling_type')} is {pooling:,}, llama.cpp knows 0 to {_LAST_POOLING}")
        for name in _EPSILONS:
            value = self.metadata.get(self._key(name), 0.0)
            if isinstance(value, float) and not value >= 0:  # NaN too; ggml asserts it at the first token
                self.problems.append(f"{self._shown(name)} is {value:g}, llama.cpp takes 0 and more")
        self._experts()
        self._heads()
        scaling = self.metadata.get(self._key("rope.scaling.type"), "none")
        if scaling not in _ROPE_SCALING:
            self.problems.append(f"{self._shown('rope.scaling.type')} is {str(scaling)[:40]!r}, which llama.cpp lacks")
        return self.problems

    def _key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def _shown(self, name: str) -> str:
        return f"{self.shown}.{name}"

    def _required(self, name: str, *, least: int, most: int = (1 << 31) - 1) -> int | None:
        key = self._key(name)
        if key not in self.metadata:
            self.problems.append(f"{self._shown(name)} is missing")
            return None
        value = self.metadata[key]
        if self.types.get(key) is not ValueType.UINT32 or not isinstance(value, int):
            self.problems.append(f"{self._shown(name)} is {self.types[key].label}, llama.cpp reads uint32")
            return None
        if not least <= value <= most:
            self.problems.append(f"{self._shown(name)} is {value:,}, llama.cpp takes {least} to {most:,}")
            return None
        return value

    def _optional(self, name: str) -> int:
        value = self.metadata.get(self._key(name), 0)
        if isinstance(value, ArrayValue):
            numbers = [item for item in value.items() if isinstance(item, int)] if value.count <= _MAX_LAYERS else []
            return max(numbers, default=0)
        return value if isinstance(value, int) else 0

    def _per_layer(self, name: str, layers: int) -> None:
        value = self.metadata.get(self._key(name))
        if isinstance(value, ArrayValue) and value.count != layers:
            self.problems.append(f"{self._shown(name)} has {value.count:,} items for {layers} blocks")

    def _experts(self) -> None:
        count, used = self._optional("expert_count"), self._optional("expert_used_count")
        if count > _MAX_EXPERTS:
            self.problems.append(f"{self._shown('expert_count')} is {count:,}, llama.cpp takes up to {_MAX_EXPERTS:,}")
        elif used > count or (count and not used):
            self.problems.append(f"{self._shown('expert_used_count')} is {used:,} of {count:,} experts")
        groups, used_groups = self._optional("expert_group_count"), self._optional("expert_group_used_count")
        if groups and (groups >= count or (groups > 1 and count % groups)):
            self.problems.append(f"{self._shown('expert_group_count')} is {groups:,} for {count:,} experts")
        elif groups > 1 and not 0 < used_groups < groups:
            self.problems.append(f"{self._shown('expert_group_used_count')} is {used_groups:,} of {groups:,} groups")

    def _heads(self) -> None:
        heads, kv_heads = (
            self.metadata.get(self._key("attention.head_count")),
            self._optional("attention.head_count_kv"),
        )
        width = self._optional("embedding_length")
        if not isinstance(heads, int) or isinstance(heads, bool) or heads <= 0:
            return
        if isinstance(self.metadata.get(self._key("attention.head_count_kv")), int) and kv_heads and heads % kv_heads:
            self.problems.append(
                f"{self._shown('attention.head_count')} {heads:,} is no multiple of {kv_heads:,} KV heads"
            )
        key_length = self._optional("attention.key_length") or width // heads
        rotated = self._optional("rope.dimension_count") or key_length
        if not key_length:
            self.problems.append(f"{self._shown('attention.head_count')} is {heads:,} for a width of {width:,}")
        elif rotated > key_length:
            self.problems.append(f"{self._shown('rope.dimension_count')} is {rotated:,}, a head has {key_length:,}")


class _Vocabulary:
    """`llama_vocab::impl::load`."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self.metadata = metadata
        self.problems: list[str] = []

    def check(self, *, thorough: bool) -> list[str]:
        model = self.metadata.get("tokenizer.ggml.model")
        if model in _WITHOUT_VOCABULARY:
            return []
        if not isinstance(model, str):
            return ["tokenizer.ggml.model is missing"]
        tokens = self._array("tokens", (ValueType.STRING,))
        if tokens is None:
            if not self.problems:
                self.problems.append("tokenizer.ggml.tokens is missing")
            return self.problems
        if not tokens.count:
            self.problems.append("tokenizer.ggml.tokens is empty")
        self._same_length("scores", (ValueType.FLOAT32, ValueType.INT32), tokens.count)
        self._same_length("token_type", (ValueType.INT32,), tokens.count)
        pre = self.metadata.get("tokenizer.ggml.pre")
        if self._array("merges", (ValueType.STRING,)) is None and model in _WITH_MERGES and pre != "kimi-k2":
            self.problems.append("tokenizer.ggml.merges is missing")
        types = self.metadata.get("tokenizer.ggml.token_type")
        if (
            model == "bert"
            and isinstance(types, ArrayValue)
            and not self.problems
            and types.positions(_BYTE_TYPE, most=1)
        ):
            self.problems.append("tokenizer.ggml.token_type has byte tokens, which a bert tokenizer can't have")
        if thorough and not self.problems:
            self._unique(tokens)
        return self.problems

    def check_tokenizing(self) -> list[str]:
        model = self.metadata.get("tokenizer.ggml.model")
        tokens = self._array("tokens", (ValueType.STRING,))
        if isinstance(model, str) and model not in _WITHOUT_VOCABULARY and tokens is not None:
            self._special_tokens(model, self.metadata.get("tokenizer.ggml.pre"), tokens.count)
            self._bytes(model, tokens)
        return self.problems

    def _array(self, name: str, item_types: tuple[ValueType, ...]) -> ArrayValue | None:
        key = f"tokenizer.ggml.{name}"
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, ArrayValue) or value.item_type not in item_types:
            wanted = " or ".join(item.label for item in item_types)
            self.problems.append(f"{key} is not an array of {wanted}")
            return None
        return value

    def _same_length(self, name: str, item_types: tuple[ValueType, ...], count: int) -> None:
        array = self._array(name, item_types)
        if array is not None and array.count != count:
            self.problems.append(f"tokenizer.ggml.{name} has {array.count:,} items for {count:,} tokens")

    def _unique(self, tokens: ArrayValue) -> None:
        # The loader asserts as many texts as tokens, and renames empty ones by their index.
        seen: set[bytes] = set()
        for index, raw in enumerate(tokens.raw_strings()):
            text = raw or b"[EMPTY_%d]" % index
            if text in seen:
                shown = text[:40].decode("utf-8", "backslashreplace")
                self.problems.append(f"the token '{shown}' is in tokenizer.ggml.tokens twice (again at {index:,})")
                return
            seen.add(text)

    def _special_tokens(self, model: str, pre: Value | None, count: int) -> None:
        """`llama_vocab::impl::tokenize` asserts the tokens that it is told to add."""
        name = pre if isinstance(pre, str) else None
        bos, eos = default_ids(model)
        if name in _WITHOUT_BOS:
            bos = None
        add_bos, add_eos = default_adds(model, name)
        add_bos = self.metadata.get("tokenizer.ggml.add_bos_token", add_bos) is True
        add_eos = self.metadata.get("tokenizer.ggml.add_eos_token", add_eos) is True
        if model == "bert":
            self._special("bos", bos, count, "BOS")
            self._special("seperator", _SEPARATOR, count, "separator")  # llama.cpp spells it so
            return
        if model not in ("llama", "t5", *_WITH_MERGES):
            return  # adds none
        if add_bos or model == "gemma4" or name in _ALWAYS_WITH_BOS:
            self._special("bos", bos, count, "BOS")
        if add_eos:
            self._special("eos", eos, count, "EOS")

    def _special(self, name: str, default: int | None, count: int, shown: str) -> None:
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        named = isinstance(value, int) and 0 <= value < count
        if not named and (default is None or default >= count):
            self.problems.append(f"the tokenizer adds a {shown} token, but the vocabulary has none")

    def _bytes(self, model: str, tokens: ArrayValue) -> None:
        """What no token covers is written byte by byte, and a byte that has no token ends the process."""
        if model in ("llama", "plamo2"):
            self._every_byte(tokens, or_plain=model == "llama")
        elif model == "rwkv":
            self._every_first_byte(tokens)

    def _every_byte(self, tokens: ArrayValue, *, or_plain: bool) -> None:
        """`llama_vocab::byte_to_token`: the text `<0xXX>`, or for `llama` the byte itself."""
        left = set(_BYTE_TEXTS)
        plain = {b"%c" % byte: b"<0x%02X>" % byte for byte in range(1, 256)} if or_plain else {}
        for raw in tokens.raw_strings():
            if raw in left:
                left.remove(raw)
                if not left:
                    return
        if plain:
            left -= {plain[raw] for raw in tokens.raw_strings() if raw in plain}
        if left:
            first = min(left).decode("ascii")
            self.problems.append(f"tokenizer.ggml.tokens lacks {len(left)} of the 256 bytes, the first is {first}")

    def _every_first_byte(self, tokens: ArrayValue) -> None:
        """`llm_tokenizer_rwkv_session`: a text that only begins like a token is tokenized for ever."""
        firsts: set[int] = set()
        whole: set[int] = set()
        for raw in tokens.raw_strings():
            text = _unescape_first(raw)
            if text is not None:
                firsts.add(text[0])
                if text[1]:
                    whole.add(text[0])
        if firsts - whole:
            shown = f"<0x{min(firsts - whole):02X}>"
            self.problems.append(f"tokenizer.ggml.tokens has tokens that begin with {shown}, but not that byte alone")


def _unescape_first(raw: bytes) -> tuple[int, bool] | None:
    """The first byte of an RWKV token's text, and whether it is all of it (`llama_unescape_rwkv_token`)."""
    if raw[:1] != b"\\":
        return (raw[0], len(raw) == 1) if raw else None
    if raw[1:2] != b"x":
        return (_ESCAPES.get(raw[1], raw[1]), len(raw) == 2) if len(raw) > 1 else None
    if len(raw) < 4:
        return None
    high, low = (digit - 87 if digit >= 97 else digit - 48 for digit in raw[2:4])
    return ((high << 4) + low) & 255, len(raw) == 4
