"""Special tokens as llama.cpp finds them: by key, by the tokenizer's default, or by their text."""

from __future__ import annotations

from collections.abc import Mapping

from tea_models.gguf.arrays import ArrayValue
from tea_models.gguf.header import Value
from tea_models.gguf.types import ValueType

_CONTROL = 3
MOST_CONTROL_TOKENS = 512

# Texts that llama.cpp takes for the end of a turn when no key names it (llama-vocab.cpp), the most specific first.
# It takes whichever its hash map yields first; here the template decides, then this order.
TURN_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001 - DeepSeek writes it so
    "<|endoftext|>",
)

# (bos, eos) that a tokenizer has when the file names none (llama-vocab.cpp, `llama_vocab::impl::load`).
_DEFAULT_IDS: dict[str, tuple[int | None, int | None]] = {
    "llama": (1, 2),
    "bert": (101, None),
    "gpt2": (11, 11),
    "hybriddna": (11, 11),
    "whitespace": (11, 11),
    "t5": (None, 1),
    "plamo2": (1, 2),
}
# (add_bos, add_eos) when the file does not say; a few pre-tokenizers of `gpt2` add BOS.
_DEFAULT_ADDS: dict[str, tuple[bool, bool]] = {"llama": (True, False), "bert": (True, False), "t5": (False, True)}
_PRE_WITH_BOS = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken"}
    | {"chameleon"}
)


def default_ids(model: str | None) -> tuple[int | None, int | None]:
    """BOS and EOS of a tokenizer when the file names none."""
    return _DEFAULT_IDS.get(model or "", (None, None))


def default_adds(model: str | None, pre: str | None) -> tuple[bool, bool]:
    """Whether BOS and EOS are added when the file does not say."""
    if model == "gpt2":
        return (pre in _PRE_WITH_BOS, False)
    return _DEFAULT_ADDS.get(model or "", (False, False))


def token_texts(metadata: Mapping[str, Value]) -> ArrayValue | None:
    """The vocabulary, or None where the file has none."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    return tokens if isinstance(tokens, ArrayValue) and tokens.item_type is ValueType.STRING else None


def find_turn_end(tokens: ArrayValue | None, template: str | None) -> tuple[int | None, str]:
    """The token that ends a turn by its text, and where that comes from; one that the template writes is preferred."""
    texts = sorted(TURN_ENDS, key=lambda text: not template or text not in template)
    found = tokens.find_first(texts) if tokens is not None else None
    return (found[1], f"derived:the token {found[0]}") if found else (None, "derived:not in the file")


def control_tokens(metadata: Mapping[str, Value]) -> tuple[str, ...]:
    """Texts of the control tokens, at most the first `MOST_CONTROL_TOKENS`."""
    tokens, types = token_texts(metadata), metadata.get("tokenizer.ggml.token_type")
    if tokens is None or not isinstance(types, ArrayValue) or types.item_type is not ValueType.INT32:
        return ()
    indices = types.positions(_CONTROL, MOST_CONTROL_TOKENS)
    return tuple(tokens.texts(index for index in indices if index < tokens.count))
