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
Hyperparameter = Scalar | tuple[Scalar, ...]  # of arrays only short ones


@dataclass(frozen=True, slots=True)
class Fact(Generic[T_co]):
    """A value and where it came from."""

    value: T_co  # the value
    source: str  # `gguf:<key>`, `tensors`, `file`, `registry:<name>`, `template` (found by running it), `derived:<how>`


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """One file (shard) of the model."""

    name: str  # upstream file name, without a folder
    size: int  # bytes
    sha256: str | None  # of the whole file, if it is known


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """The tokenizer."""

    model: Fact[str | None]  # llama.cpp's name of it (`gpt2`, `llama`, `bert`, …)
    pre: Fact[str | None]  # pre-tokenizer
    vocab_size: Fact[int | None]  # number of tokens
    bos: Fact[int | None]  # token id
    eos: Fact[int | None]  # token id
    eot: Fact[int | None]  # token id of the turn end: by its key, or found by its text as llama.cpp does
    bos_token: Fact[str | None]  # its text
    eos_token: Fact[str | None]  # its text
    eot_token: Fact[str | None]  # its text
    add_bos: Fact[bool]  # the tokenizer adds BOS
    add_eos: Fact[bool]  # the tokenizer adds EOS


@dataclass(frozen=True, slots=True)
class ChatFacts:
    """The chat template and what it can do, found by running it on probe messages."""

    template: Fact[str | None]  # its text, or None
    template_sha256: Fact[str | None]  # SHA-256 of the text as UTF-8
    format: Fact[str | None]  # a name for people (`chatml`, `gemma`, `phi`, …, `custom`, or None without a template)
    system_role: Fact[bool]  # it renders a system message's text
    tools: Fact[bool]  # it renders the `tools` variable
    stop: Fact[tuple[str, ...]]  # texts that end a turn
    thinking: Fact[str | None]  # name of the variable that switches thinking on or off, or None
    default_system_prompt: Fact[str | None]  # what it puts in when no system message is given, or None
    emits_bos: Fact[bool]  # the rendered text begins with the BOS token, so the tokenizer must not add it
    warnings: tuple[str, ...] = ()  # unusual behaviour, a sentence each


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """Where the bytes of the weights are, for planning memory and GPU layers."""

    total: int  # all tensor data, in bytes
    blocks: tuple[int, ...]  # bytes of each block (`blk.N.*`), in order
    token_embedding: int  # bytes of `token_embd.weight`
    output: int  # bytes of `output.weight` (0 when tied to the token embedding)
    other: int  # everything else


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Facts about a model that hold on every machine."""

    files: tuple[ProfileFile, ...]  # all shards in order
    header_sha256: str  # SHA-256 of the header bytes of the first shard (up to the start of the tensor data)
    kind: Fact[Kind]  # what the model is for
    name: Fact[str | None]  # `general.name`
    architecture: Fact[str]  # `general.architecture`; empty if missing
    quantization: Fact[str | None]  # as people name it, such as Q4_K_M
    bits_per_weight: Fact[float]  # average over all tensors
    parameters: Fact[int]  # number of weights of all files
    context_length: Fact[int | None]  # trained context, in tokens
    embedding_length: Fact[int | None]  # width of the model, which is the dimension of its embeddings
    license: Fact[str | None]  # as the file or the registry states it
    pooling: Fact[str | None]  # llama.cpp's pooling (`none`, `mean`, `cls`, `last`, `rank`) where the header says one
    tokenizer: TokenizerFacts  # the tokenizer
    chat: ChatFacts  # the chat template and what it can do
    weights: WeightFacts  # where the bytes of the weights are
    hyperparameters: dict[str, Fact[Hyperparameter]]  # `<architecture>.*` keys without the prefix; only short arrays
    warnings: tuple[str, ...] = ()  # what a user should know, a sentence each


def values_of(facts: TokenizerFacts | ChatFacts) -> dict[str, Any]:
    """The values of a group of facts by name, without their sources, as JSON."""
    found = {item.name: getattr(facts, item.name) for item in fields(facts)}
    plain = {name: fact.value for name, fact in found.items() if isinstance(fact, Fact)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
