"""Whether llama.cpp can load a file that reads well: what would make its loader fail, or kill the process.

Each rule names where it comes from in llama.cpp. Files that are not loaded as models (adapters, projectors, importance
matrices) are judged by their layout alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

from tea_models.errors import IntegrityError
from tea_models.gguf.arrays import ArrayValue
from tea_models.gguf.header import Header, Value
from tea_models.gguf.types import ValueType
from tea_models.gguf.vocabulary import default_adds, default_ids

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
_PREFIX = "tokenizer.ggml."
_ALSO = {"scores": ValueType.INT32}  # an item type that is read too
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z")  # llama_split_prefix
_NOT_MODELS = ("adapter", "mmproj", "imatrix")


def check_loadable(header: Header, *, thorough: bool = True) -> tuple[str, ...]:
    """Why the native loader must not be given this file (its source open); `thorough` may take 0.1 s longer."""
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
    if header.tensors or "split.count" in metadata:
        found += _Hyperparameters(header, architecture).check()
    return (*found, *_Vocabulary(metadata).check(thorough=thorough))


def check_tokenizable(header: Header) -> tuple[str, ...]:
    """Reasons why llama.cpp would load this file (its source open) and then die of the first text."""
    return tuple(_Vocabulary(header.metadata).check_tokenizing()) if is_loaded(header) else ()


def is_loaded(header: Header) -> bool:
    """Whether llama.cpp loads this file by its name: no adapter, projector or imatrix, no later file of a model."""
    metadata = header.metadata
    part = metadata.get("split.no")
    if isinstance(part, int) and part > 0:
        return False
    return metadata.get("general.type") not in _NOT_MODELS and metadata.get("general.architecture") != "clip"


def _under(prefix: str, metadata: Mapping[str, Value]) -> dict[str, Value]:
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


class _Hyperparameters:
    """`llama_model_base::load_hparams`."""

    def __init__(self, header: Header, architecture: str) -> None:
        self.prefix = f"{architecture}."
        self.values = _under(self.prefix, header.metadata)
        self.types = header.value_types
        self.shown = architecture if len(architecture) <= 40 else f"{architecture[:39]}…"
        self.problems: list[str] = []

    def check(self) -> list[str]:
        self._required("context_length")
        self._required("embedding_length")
        layers = self._required("block_count", most=_MAX_LAYERS)
        if layers is None:
            return self.problems
        nextn = self._number("nextn_predict_layers")
        if nextn > layers:
            self._wrong("nextn_predict_layers", f"is {nextn:,}, beyond {layers} blocks")
        for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_used_count"):
            value = self.values.get(name)
            if isinstance(value, ArrayValue) and value.count != layers:
                self._wrong(name, f"has {value.count:,} items for {layers} blocks")
        pooling = self.values.get("pooling_type")
        if isinstance(pooling, int) and not 0 <= pooling <= _LAST_POOLING:
            self._wrong("pooling_type", f"is {pooling:,}, llama.cpp knows 0 to {_LAST_POOLING}")
        for name in _EPSILONS:
            epsilon = self.values.get(name)
            if isinstance(epsilon, float) and not epsilon >= 0:  # NaN too; ggml asserts it at the first token
                self._wrong(name, f"is {epsilon:g}, llama.cpp takes 0 and more")
        self._experts()
        self._heads()
        scaling = self.values.get("rope.scaling.type", "none")
        if scaling not in _ROPE_SCALING:
            self._wrong("rope.scaling.type", f"is {str(scaling)[:40]!r}, which llama.cpp lacks")
        return self.problems

    def _wrong(self, name: str, problem: str) -> None:
        self.problems.append(f"{self.shown}.{name} {problem}")

    def _required(self, name: str, *, most: int = (1 << 31) - 1) -> int | None:
        value = self.values.get(name)
        if value is None:
            self._wrong(name, "is missing")
        elif self.types[self.prefix + name] is not ValueType.UINT32 or not isinstance(value, int):
            self._wrong(name, f"is {self.types[self.prefix + name].label}, llama.cpp reads uint32")
        elif not 1 <= value <= most:
            self._wrong(name, f"is {value:,}, llama.cpp takes 1 to {most:,}")
        else:
            return value
        return None

    def _number(self, name: str) -> int:
        """A number, the largest of one for each block, or 0."""
        value = self.values.get(name, 0)
        if isinstance(value, ArrayValue):
            items = value if value.count <= _MAX_LAYERS else ()
            return max((item for item in items if isinstance(item, int)), default=0)
        return value if isinstance(value, int) else 0

    def _experts(self) -> None:
        count, used = self._number("expert_count"), self._number("expert_used_count")
        if count > _MAX_EXPERTS:
            self._wrong("expert_count", f"is {count:,}, llama.cpp takes up to {_MAX_EXPERTS:,}")
        elif used > count or (count and not used):
            self._wrong("expert_used_count", f"is {used:,} of {count:,} experts")
        groups, used_groups = self._number("expert_group_count"), self._number("expert_group_used_count")
        if groups and (groups >= count or (groups > 1 and count % groups)):
            self._wrong("expert_group_count", f"is {groups:,} for {count:,} experts")
        elif groups > 1 and not 0 < used_groups < groups:
            self._wrong("expert_group_used_count", f"is {used_groups:,} of {groups:,} groups")

    def _heads(self) -> None:
        heads, kv_heads = self.values.get("attention.head_count"), self.values.get("attention.head_count_kv")
        if not isinstance(heads, int) or isinstance(heads, bool) or heads <= 0:
            return
        if isinstance(kv_heads, int) and kv_heads and heads % kv_heads:
            self._wrong("attention.head_count", f"{heads:,} is no multiple of {kv_heads:,} KV heads")
        width = self._number("embedding_length")
        key_length = self._number("attention.key_length") or width // heads
        rotated = self._number("rope.dimension_count") or key_length
        if not key_length:
            self._wrong("attention.head_count", f"is {heads:,} for a width of {width:,}")
        elif rotated > key_length:
            self._wrong("rope.dimension_count", f"is {rotated:,}, a head has {key_length:,}")


class _Vocabulary:
    """`llama_vocab::impl::load`."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self.values = _under(_PREFIX, metadata)
        self.model = self.values.get("model")
        self.problems: list[str] = []

    def check(self, *, thorough: bool) -> list[str]:
        if self.model in _WITHOUT_VOCABULARY:
            return []
        if not isinstance(self.model, str):
            return ["tokenizer.ggml.model is missing"]
        tokens = self._array("tokens", ValueType.STRING)
        if tokens is None:
            return self.problems or ["tokenizer.ggml.tokens is missing"]
        if not tokens.count:
            self.problems.append("tokenizer.ggml.tokens is empty")
        scores, types = self._array("scores", ValueType.FLOAT32), self._array("token_type", ValueType.INT32)
        for name, array in (("scores", scores), ("token_type", types)):
            if array is not None and array.count != tokens.count:
                self.problems.append(f"tokenizer.ggml.{name} has {array.count:,} items for {tokens.count:,} tokens")
        merges = self._array("merges", ValueType.STRING)
        if merges is None and self.model in _WITH_MERGES and self.values.get("pre") != "kimi-k2":
            self.problems.append("tokenizer.ggml.merges is missing")
        if self.model == "bert" and types is not None and not self.problems and _BYTE_TYPE in types:
            self.problems.append("tokenizer.ggml.token_type has byte tokens, which a bert tokenizer can't have")
        if thorough and not self.problems:
            self._unique(tokens.strings())
        return self.problems

    def check_tokenizing(self) -> list[str]:
        tokens = self._array("tokens", ValueType.STRING)
        if isinstance(self.model, str) and self.model not in _WITHOUT_VOCABULARY and tokens is not None:
            self._special_tokens(self.model, tokens.count)
            # What no token covers is written byte by byte, and a byte that has no token ends the process.
            if self.model in ("llama", "plamo2"):
                self._every_byte(tokens)
            elif self.model == "rwkv":
                self._every_first_byte(tokens.strings())
        return self.problems

    def _array(self, name: str, item_type: ValueType) -> ArrayValue | None:
        value = self.values.get(name)
        if value is None or (isinstance(value, ArrayValue) and value.item_type in (item_type, _ALSO.get(name))):
            return value
        self.problems.append(f"{_PREFIX}{name} is not an array of {item_type.label}")
        return None

    def _unique(self, tokens: Iterable[bytes]) -> None:
        # The loader asserts as many texts as tokens, and renames empty ones by their index.
        seen: set[bytes] = set()
        for index, raw in enumerate(tokens):
            text = raw or b"[EMPTY_%d]" % index
            if text in seen:
                shown = text[:40].decode("utf-8", "backslashreplace")
                self.problems.append(f"the token '{shown}' is in tokenizer.ggml.tokens twice (again at {index:,})")
                return
            seen.add(text)

    def _special_tokens(self, model: str, count: int) -> None:
        """`llama_vocab::impl::tokenize` asserts the tokens that it is told to add."""
        pre = self.values.get("pre")
        name = pre if isinstance(pre, str) else None
        bos, eos = default_ids(model)
        if name in _WITHOUT_BOS:
            bos = None
        add_bos, add_eos = default_adds(model, name)
        if model == "bert":
            self._special("bos", bos, count, "BOS")
            self._special("seperator", _SEPARATOR, count, "separator")  # llama.cpp spells it so
        elif model in ("llama", "t5", *_WITH_MERGES):  # others add none
            if self.values.get("add_bos_token", add_bos) is True or model == "gemma4" or name in _ALWAYS_WITH_BOS:
                self._special("bos", bos, count, "BOS")
            if self.values.get("add_eos_token", add_eos) is True:
                self._special("eos", eos, count, "EOS")

    def _special(self, name: str, default: int | None, count: int, shown: str) -> None:
        value = self.values.get(f"{name}_token_id")
        named = isinstance(value, int) and 0 <= value < count
        if not named and (default is None or default >= count):
            self.problems.append(f"the tokenizer adds a {shown} token, but the vocabulary has none")

    def _every_byte(self, tokens: ArrayValue) -> None:
        """`llama_vocab::byte_to_token`: the text `<0xXX>`, or for `llama` the byte itself (but 0)."""
        left = {b"<0x%02X>" % byte for byte in range(256)}
        for raw in tokens.strings():  # they stand at the beginning, where they are
            left.discard(raw)
            if not left:
                return
        if self.model == "llama":
            plain = {b"%c" % byte: b"<0x%02X>" % byte for byte in range(1, 256)}
            left -= {plain[raw] for raw in tokens.strings() if raw in plain}
        if left:
            shown = min(left).decode("ascii")
            self.problems.append(f"tokenizer.ggml.tokens lacks {len(left)} of the 256 bytes, the first is {shown}")

    def _every_first_byte(self, tokens: Iterable[bytes]) -> None:
        """`llm_tokenizer_rwkv_session`: a text that only begins like a token is tokenized for ever."""
        texts = [text for raw in tokens if (text := _unescape_first(raw)) is not None]
        lacking = {first for first, _ in texts} - {first for first, alone in texts if alone}
        if lacking:
            shown = f"<0x{min(lacking):02X}>"
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


def check_shards(headers: Sequence[Header]) -> None:
    """Refuse files that are not the parts of one model, in order (`llama_model_loader`, the `split.*` keys)."""
    if len(headers) == 1:
        return
    hint = "the parts do not belong together: fetch the model again"
    seen: dict[str, str] = {}
    for index, header in enumerate(headers):
        name = PurePath(header.source.name).name
        for key, expected in (("split.no", index), ("split.count", len(headers))):
            found = header.metadata.get(key)
            if found != expected:
                shown = "missing" if found is None else str(found)[:20]
                raise IntegrityError(f"{name}: {key} is {shown}, expected {expected}", hint=hint)
        for info in header.tensors:
            if info.name in seen:
                raise IntegrityError(f"{name}: tensor {info.name[:80]} is in {seen[info.name]} too")
            seen[info.name] = name
    stated = headers[0].metadata.get("split.tensors.count", len(seen))
    if stated != len(seen):
        name, shown = PurePath(headers[0].source.name).name, str(stated)[:20]
        problem = f"{name}: split.tensors.count is {shown}, the parts have {len(seen):,} tensors"
        raise IntegrityError(problem, hint=hint)
