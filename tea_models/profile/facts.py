"""The types of a model's profile: what is true of a model file on every machine, each value with where it came from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, TypeVar

SCHEMA = "tea.model-profile/1"

T_co = TypeVar("T_co", covariant=True)

#: What a model file is for. `chat` has a chat template; `text` is a causal model without one.
Kind = Literal[
    "chat", "text", "embedding", "reranker", "encoder-decoder", "projector", "adapter", "vocabulary", "other"
]

Scalar = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Fact(Generic[T_co]):
    """A value and where it came from.

    Attributes:
        value: The value.
        source: `gguf:<key>`, `tensors`, `file`, `registry:<name>`, `template` (found by running it) or `derived:<how>`.
    """

    value: T_co
    source: str


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """One file (shard) of the model.

    Attributes:
        name: Upstream file name, without a folder.
        size: Bytes.
        sha256: Of the whole file, if it is known.
    """

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """The tokenizer.

    Attributes:
        model: llama.cpp's name of it (`gpt2`, `llama`, `bert`, …).
        pre: Pre-tokenizer.
        vocab_size: Number of tokens.
        bos: Token id.
        eos: Token id.
        eot: Token id of the turn end: by its key, or found by its text as llama.cpp does.
        bos_token: Its text.
        eos_token: Its text.
        eot_token: Its text.
        add_bos: The tokenizer adds BOS.
        add_eos: The tokenizer adds EOS.
    """

    model: Fact[str | None]
    pre: Fact[str | None]
    vocab_size: Fact[int | None]
    bos: Fact[int | None]
    eos: Fact[int | None]
    eot: Fact[int | None]
    bos_token: Fact[str | None]
    eos_token: Fact[str | None]
    eot_token: Fact[str | None]
    add_bos: Fact[bool]
    add_eos: Fact[bool]


@dataclass(frozen=True, slots=True)
class ChatFacts:
    """The chat template and what it can do, found by running it on probe messages.

    Attributes:
        template: Its text, or None.
        template_sha256: SHA-256 of the text as UTF-8.
        format: A name for people (`chatml`, `gemma`, `phi`, `llama-3`, …, `custom`, or None without a template).
        system_role: It renders a system message's text.
        tools: It renders the `tools` variable.
        stop: Texts that end a turn.
        thinking: Name of the variable that switches thinking on or off, or None.
        default_system_prompt: What it puts in when no system message is given, or None.
        emits_bos: The rendered text begins with the BOS token, so the tokenizer must not add it.
        warnings: Unusual behaviour, a sentence each.
    """

    template: Fact[str | None]
    template_sha256: Fact[str | None]
    format: Fact[str | None]
    system_role: Fact[bool]
    tools: Fact[bool]
    stop: Fact[tuple[str, ...]]
    thinking: Fact[str | None]
    default_system_prompt: Fact[str | None]
    emits_bos: Fact[bool]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """Where the bytes of the weights are, for planning memory and GPU layers.

    Attributes:
        total: All tensor data, in bytes.
        blocks: Bytes of each block (`blk.N.*`), in order.
        token_embedding: Bytes of `token_embd.weight`.
        output: Bytes of `output.weight` (0 when tied to the token embedding).
        other: Everything else.
    """

    total: int
    blocks: tuple[int, ...]
    token_embedding: int
    output: int
    other: int


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Facts about a model that hold on every machine.

    Attributes:
        files: All shards in order.
        header_sha256: SHA-256 of the header bytes of the first shard (up to the start of the tensor data).
        kind: What the model is for.
        name: `general.name`.
        architecture: `general.architecture`; empty if missing.
        quantization: As people name it, such as Q4_K_M.
        bits_per_weight: Average over all tensors.
        parameters: Number of weights of all files.
        context_length: Trained context, in tokens.
        embedding_length: Width of the model, which is the dimension of its embeddings.
        license: As the file or the registry states it.
        pooling: llama.cpp's pooling (`none`, `mean`, `cls`, `last`, `rank`) where the header says one.
        tokenizer: The tokenizer.
        chat: The chat template and what it can do.
        weights: Where the bytes of the weights are.
        hyperparameters: Every `<architecture>.*` key without its prefix, scalars and short arrays (tuples).
        warnings: What a user should know, a sentence each.
    """

    files: tuple[ProfileFile, ...]
    header_sha256: str
    kind: Fact[Kind]
    name: Fact[str | None]
    architecture: Fact[str]
    quantization: Fact[str | None]
    bits_per_weight: Fact[float]
    parameters: Fact[int]
    context_length: Fact[int | None]
    embedding_length: Fact[int | None]
    license: Fact[str | None]
    pooling: Fact[str | None]
    tokenizer: TokenizerFacts
    chat: ChatFacts
    weights: WeightFacts
    hyperparameters: dict[str, Fact[Scalar | tuple[Scalar, ...]]]
    warnings: tuple[str, ...] = ()


def values_of(facts: TokenizerFacts | ChatFacts) -> dict[str, Any]:
    """The values of a group of facts by name, without their sources, as JSON."""
    found = {item.name: getattr(facts, item.name) for item in fields(facts)}
    plain = {name: fact.value for name, fact in found.items() if isinstance(fact, Fact)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
