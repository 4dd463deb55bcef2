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
    """A value and where it came from."""

    value: T_co
    source: str  # `gguf:<key>`, `tensors`, `file`, `registry:<name>`, `template` (by running it) or `derived:<how>`


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """One file (shard) of the model."""

    name: str  # upstream, without a folder
    size: int  # in bytes
    sha256: str | None  # of the whole file, if it is known


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """The tokenizer, with its special tokens by id and by text."""

    model: Fact[str | None]  # llama.cpp's name of it (`gpt2`, `llama`, `bert`, …)
    pre: Fact[str | None]  # the pre-tokenizer
    vocab_size: Fact[int | None]  # number of tokens
    bos: Fact[int | None]
    eos: Fact[int | None]
    eot: Fact[int | None]  # the turn end: by its key, or found by its text as llama.cpp does
    bos_token: Fact[str | None]
    eos_token: Fact[str | None]
    eot_token: Fact[str | None]
    add_bos: Fact[bool]  # the tokenizer adds it
    add_eos: Fact[bool]


@dataclass(frozen=True, slots=True)
class ChatFacts:
    """The chat template and what it can do, found by running it on probe messages."""

    template: Fact[str | None]  # its text
    template_sha256: Fact[str | None]  # of the text as UTF-8
    format: Fact[str | None]  # a name for people: `chatml`, `gemma`, `phi`, `llama-3`, …, `custom`
    system_role: Fact[bool]  # it renders a system message's text
    tools: Fact[bool]  # it renders the `tools` variable
    stop: Fact[tuple[str, ...]]  # texts that end a turn
    thinking: Fact[str | None]  # name of the variable that switches thinking on or off
    default_system_prompt: Fact[str | None]  # what it puts in when no system message is given
    emits_bos: Fact[bool]  # the rendered text begins with the BOS token, so the tokenizer must not add it
    warnings: tuple[str, ...] = ()  # unusual behaviour, a sentence each


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """Where the bytes of the weights are, for planning memory and GPU layers."""

    total: int  # all tensor data
    blocks: tuple[int, ...]  # each block (`blk.N.*`), in order
    token_embedding: int  # `token_embd.weight`
    output: int  # `output.weight`, 0 when tied to the token embedding
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
