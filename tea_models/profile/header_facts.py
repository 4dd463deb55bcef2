"""Gather the facts of a model from the headers of its files, each with where it came from."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tea_models.disk.hashing import sha256_text
from tea_models.gguf.arrays import ArrayValue
from tea_models.gguf.header import Header, TensorInfo, Value
from tea_models.gguf.quantization import file_type_mismatch, file_type_name, tensor_type_shares
from tea_models.gguf.types import ValueType
from tea_models.gguf.vocabulary import control_tokens, default_adds, default_ids, find_turn_end, token_texts
from tea_models.profile.facts import ChatFacts, Fact, ModelProfile, ProfileFile, Scalar, TokenizerFacts, WeightFacts
from tea_models.profile.kind import flaws_of, kind_of, pooling_of
from tea_models.profile.model_files import open_model
from tea_models.registry.entries import Entry
from tea_models.settings import Settings

ABSENT = "derived:not in the file"
BY_TOKENIZER = "derived:the tokenizer's default"
MOST_BYTES = 8192  # of an array among the hyperparameters; per-layer arrays have at most 512 items
TEMPLATE = "tokenizer.chat_template"
_PROBED = ("format", "system_role", "tools", "thinking", "default_system_prompt", "emits_bos")
_BLOCK = re.compile(r"blk\.([0-9]{1,4})(?:\.|\Z)")


def resolve_profile(path_or_ref: Path | str, *, settings: Settings | None = None) -> ModelProfile:
    """The profile of a model that lies here, is installed, or is remote (then only its header is fetched).

    Args:
        path_or_ref: A path, or a reference as a user types it.
        settings: Where the store and the hosts are; by default from the environment.

    Raises:
        MalformedGGUFError: A file is not GGUF or breaks the specification.
        NotAvailableError: The model can't be had from here.
        UsageError: The text is no reference.
    """
    with open_model(path_or_ref, settings=settings) as model:
        return profile_from_headers(model.headers, model.files, entry=model.entry)


def profile_from_headers(
    headers: Sequence[Header],
    files: Sequence[ProfileFile],
    *,
    entry: Entry | None = None,
    header_sha256: str | None = None,
) -> ModelProfile:
    """Gather the facts of a model from the headers of its files, whose sources are open, corrected by its entry."""
    first = headers[0]
    facts = _Metadata(first, entry)
    tensors = tuple(info for header in headers for info in header.tensors)
    architecture = facts.text("general.architecture")
    prefix = architecture.value or ""
    template = facts.template()
    tokenizer = _tokenizer(facts, template.value)
    chat = _chat(facts, template, tokenizer, entry)
    kind = kind_of(prefix, facts.values, tensors, template=template.value is not None)
    if entry is not None and kind.value in ("chat", "text") and entry.kind in ("embedding", "reranker"):
        kind = Fact("embedding" if entry.kind == "embedding" else "reranker", f"registry:{entry.name}")
    facts.warnings += flaws_of(kind.value, prefix, tensors)
    parameters = sum(info.elements for info in tensors)
    weights = _weights(tensors)
    return ModelProfile(
        files=tuple(files),
        header_sha256=_hash_header(first) if header_sha256 is None else header_sha256,
        kind=kind,
        name=facts.text("general.name"),
        architecture=Fact(prefix, architecture.source),
        quantization=facts.quantization(tensors),
        bits_per_weight=Fact(round(weights.total * 8 / parameters, 3) if parameters else 0.0, "tensors"),
        parameters=Fact(parameters, "tensors"),
        context_length=facts.number(f"{prefix}.context_length"),
        embedding_length=facts.number(f"{prefix}.embedding_length"),
        license=facts.license(),
        pooling=pooling_of(prefix, facts.values),
        tokenizer=tokenizer,
        chat=chat,
        weights=weights,
        hyperparameters=facts.hyperparameters(prefix),
        warnings=tuple(facts.warnings),
    )


class _Metadata:
    """The header's values with the registry's corrections, and what is worth warning about."""

    def __init__(self, header: Header, entry: Entry | None) -> None:
        self.values: dict[str, Value] = dict(header.metadata)
        self.entry = entry
        self.warnings: list[str] = [*header.notes]
        self.sources: dict[str, str] = {}
        if entry is not None:
            for key, override in entry.overrides.metadata.items():
                found = self.values.get(key)
                if found == override.value or override.replaces not in (None, found):
                    continue
                self.values[key] = override.value
                self.sources[key] = f"registry:{entry.name}"
                self.warnings.append(f"{key} is {override.value!r} by the registry: {override.reason}")

    def source(self, key: str) -> str:
        return self.sources.get(key, f"gguf:{key}")

    def text(self, key: str) -> Fact[str | None]:
        return self._typed(key, str, "a string")

    def number(self, key: str) -> Fact[int | None]:
        return self._typed(key, int, "a whole number")

    def flag(self, key: str, default: bool) -> Fact[bool]:
        stated: Fact[bool | None] = self._typed(key, bool, "a boolean")
        return Fact(default, BY_TOKENIZER) if stated.value is None else Fact(stated.value, stated.source)

    def _typed(self, key: str, kind: type, wanted: str) -> Fact[Any]:
        value = self.values.get(key)
        if type(value) is kind:
            return Fact(value, self.source(key))
        if value is not None:
            self.warnings.append(f"{key[:80]} is not {wanted}: ignored")
        return Fact(None, ABSENT)

    def license(self) -> Fact[str | None]:
        stated = self.text("general.license")
        if stated.value is None and self.entry is not None and self.entry.license:
            return Fact(self.entry.license, f"registry:{self.entry.name}")
        return stated

    def quantization(self, tensors: tuple[TensorInfo, ...]) -> Fact[str | None]:
        key = "general.file_type"
        file_type = self.number(key).value
        if file_type is not None:
            name = file_type_name(file_type)
            mismatch = file_type_mismatch(file_type, tensors)
            if mismatch:
                self.warnings.append(mismatch)
            if name is not None:
                return Fact(name, self.source(key))
            self.warnings.append(f"{key} is {file_type}, which is unknown")
        shares = tensor_type_shares(info for info in tensors if len(info.shape) > 1)
        return Fact(shares[0][0], "tensors") if shares else Fact(None, ABSENT)

    def template(self) -> Fact[str | None]:
        """The chat template, or what the registry puts in the place of one that is known to be bad."""
        found = self.text(TEMPLATE)
        if found.value is None or self.entry is None:
            return found
        digest = sha256_text(found.value)
        for override in self.entry.overrides.chat_templates:
            if override.replaces_sha256 == digest:
                self.warnings.append(f"the chat template is the registry's: {override.reason}")
                return Fact(override.template, f"registry:{self.entry.name}")
        return found

    def hyperparameters(self, architecture: str) -> dict[str, Fact[Scalar | tuple[Scalar, ...]]]:
        prefix = f"{architecture}."
        found: dict[str, Fact[Scalar | tuple[Scalar, ...]]] = {}
        for key, value in self.values.items():
            if not architecture or not key.startswith(prefix):
                continue
            if not isinstance(value, ArrayValue):
                found[key.removeprefix(prefix)] = Fact(_storable(value), self.source(key))
            elif value.item_type is not ValueType.ARRAY and value.end - value.start <= MOST_BYTES:
                found[key.removeprefix(prefix)] = Fact(tuple(map(_storable, value)), self.source(key))
        return found


def _storable(value: Scalar) -> Scalar:
    """The value, or the name of a number that JSON lacks."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _tokenizer(facts: _Metadata, template: str | None) -> TokenizerFacts:
    model, pre = facts.text("tokenizer.ggml.model"), facts.text("tokenizer.ggml.pre")
    tokens = token_texts(facts.values)
    bos_default, eos_default = default_ids(model.value)
    bos = _special(facts, "bos", bos_default, tokens)
    eos = _special(facts, "eos", eos_default, tokens)
    eot = _special(facts, "eot", None, tokens)
    if eot.value is None:
        eot = Fact(*find_turn_end(tokens, template))
    add_bos, add_eos = default_adds(model.value, pre.value)
    return TokenizerFacts(
        model=model,
        pre=pre,
        vocab_size=Fact(tokens.count, "gguf:tokenizer.ggml.tokens")
        if tokens is not None
        else facts.number(f"{facts.text('general.architecture').value}.vocab_size"),
        bos=bos,
        eos=eos,
        eot=eot,
        bos_token=_piece(tokens, bos),
        eos_token=_piece(tokens, eos),
        eot_token=_piece(tokens, eot),
        add_bos=facts.flag("tokenizer.ggml.add_bos_token", add_bos),
        add_eos=facts.flag("tokenizer.ggml.add_eos_token", add_eos),
    )


def _special(facts: _Metadata, name: str, default: int | None, tokens: ArrayValue | None) -> Fact[int | None]:
    stated = facts.number(f"tokenizer.ggml.{name}_token_id")
    count = tokens.count if tokens else 0
    if stated.value is not None:
        # -1 (as an unsigned number) and ids beyond the vocabulary mean "none" to llama.cpp.
        if tokens is None or 0 <= stated.value < count:
            return stated
        facts.warnings.append(f"tokenizer.ggml.{name}_token_id {stated.value} is not in the vocabulary: ignored")
    if default is not None and default < count:
        return Fact(default, BY_TOKENIZER)
    return Fact(None, ABSENT)


def _piece(tokens: ArrayValue | None, token: Fact[int | None]) -> Fact[str | None]:
    if tokens is None or token.value is None:
        return Fact(None, ABSENT)
    return Fact(tokens.text(token.value), "gguf:tokenizer.ggml.tokens")


def _chat(facts: _Metadata, template: Fact[str | None], tokenizer: TokenizerFacts, entry: Entry | None) -> ChatFacts:
    extra = entry.overrides.stop if entry is not None else ()
    by_registry = f"registry:{entry.name}" if entry is not None else ""
    if template.value is None:
        nothing: Fact[str | None] = Fact(None, ABSENT)
        stop = Fact(tuple(extra), by_registry if extra else ABSENT)
        no = Fact(value=False, source=ABSENT)
        return ChatFacts(nothing, nothing, nothing, no, no, stop, nothing, nothing, no)
    from tea_models.chat.capabilities import probe_template

    probed = probe_template(
        template.value,
        bos_token=tokenizer.bos_token.value or "",
        eos_token=tokenizer.eos_token.value or "",
        token_texts=control_tokens(facts.values),
    )
    stops = tuple(dict.fromkeys((*probed.stop, *extra)))
    found = {name: Fact(getattr(probed, name), "template") for name in _PROBED}
    return ChatFacts(
        template=template,
        template_sha256=Fact(sha256_text(template.value), "template"),
        stop=Fact(stops, "template" if stops == probed.stop else by_registry),
        warnings=probed.warnings,
        **found,
    )


def _weights(tensors: Iterable[TensorInfo]) -> WeightFacts:
    blocks: Counter[int] = Counter()
    others: Counter[str] = Counter()
    for info in tensors:
        block = _BLOCK.match(info.name)
        if block:
            blocks[int(block[1])] += info.size
        else:
            others[info.name] += info.size
    token_embedding, output = others.pop("token_embd.weight", 0), others.pop("output.weight", 0)
    return WeightFacts(
        total=token_embedding + output + others.total() + blocks.total(),
        blocks=tuple(blocks[index] for index in range(max(blocks, default=-1) + 1)),
        token_embedding=token_embedding,
        output=output,
        other=others.total(),
    )


def _hash_header(header: Header) -> str:
    digest = hashlib.sha256()
    for at in range(0, header.data_offset, 1 << 20):
        # A file without tensors may end before its data would start.
        digest.update(header.source.read(at, min(1 << 20, header.data_offset - at)))
    return digest.hexdigest()
