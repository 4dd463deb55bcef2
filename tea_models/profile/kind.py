"""What a model file is for, told by its header: chat, text, embeddings, reranking, or only a part of a model."""

from __future__ import annotations

from collections.abc import Mapping

from tea_models.gguf.arrays import ArrayValue
from tea_models.gguf.header import TensorInfo, Value
from tea_models.gguf.vocabulary import token_texts
from tea_models.profile.facts import Fact, Kind

#: `<architecture>.pooling_type` (llama.h, `enum llama_pooling_type`).
POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_ENCODERS = frozenset({"gemma-embedding", "llama-embed", "t5encoder", "eurobert", "neo-bert", "modern-bert"})
_ENCODER_DECODERS = frozenset({"t5"})
_OTHERS = frozenset({"wavtokenizer-dec", "imatrix", "qwen3tts", "pockettts", "eagle3", "dflash", "gemma4-assistant"})
_STATED: dict[str, Kind] = {"adapter": "adapter", "mmproj": "projector", "imatrix": "other"}
_REFUSALS = {
    "embedding": "an embedding model gives vectors, it can't chat",
    "reranker": "a reranker scores texts against a query, it can't chat",
    "projector": "a multimodal projector (mmproj) is loaded beside its language model, not alone",
    "adapter": "a LoRA adapter is applied to its base model, it is no model itself",
    "vocabulary": "a vocabulary has no weights to run",
    "encoder-decoder": "an encoder-decoder model has no chat",
    "other": "not a language model",
}


def pooling_of(architecture: str, metadata: Mapping[str, Value]) -> Fact[str | None]:
    """How token vectors become one vector, where the header says it."""
    key = f"{architecture}.pooling_type"
    value = metadata.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return Fact(POOLING.get(value), f"gguf:{key}")
    return Fact(None, "derived:not in the file")


def kind_of(
    architecture: str, metadata: Mapping[str, Value], tensors: tuple[TensorInfo, ...], *, template: bool
) -> Fact[Kind]:
    part = _part_of_model(architecture, metadata, tensors)
    if part is not None:
        return part
    pooling = metadata.get(f"{architecture}.pooling_type")
    if pooling == 4:
        return Fact("reranker", f"gguf:{architecture}.pooling_type")
    head = next((info.name for info in tensors if info.name in ("cls.output.weight", "cls.weight")), None)
    if head is not None and (pooling is not None or _encodes(architecture)):
        return Fact("reranker", f"derived:it has {head}")
    if _encodes(architecture):
        return Fact("embedding", "gguf:general.architecture")
    if pooling in (1, 2, 3):
        return Fact("embedding", f"gguf:{architecture}.pooling_type")
    if architecture in _ENCODER_DECODERS:
        return Fact("encoder-decoder", "gguf:general.architecture")
    if template:
        return Fact("chat", "derived:it has a chat template")
    return Fact("text", "derived:a causal model without a chat template")


def why_no_chat(kind: str) -> str | None:
    """Why `llm.chat` is refused on a model of this kind; None if it is not."""
    return _REFUSALS.get(kind)


def flaws_of(kind: str, architecture: str, tensors: tuple[TensorInfo, ...]) -> tuple[str, ...]:
    """What conversions of a kind are known to leave out, if this one does."""
    names = {info.name.partition(".")[0] for info in tensors}
    if kind == "reranker" and "cls" not in names:
        return ("it has no ranking head (cls, cls.output): its scores mean nothing; get another conversion",)
    if architecture == "gemma-embedding" and not {"dense_2", "dense_3"} <= names:
        return (
            "it lacks the dense layers (dense_2, dense_3): its vectors differ from the model's; get a newer upload",
        )
    return ()


def _encodes(architecture: str) -> bool:
    return architecture in _ENCODERS or "-bert" in architecture or architecture == "bert"


def _part_of_model(
    architecture: str, metadata: Mapping[str, Value], tensors: tuple[TensorInfo, ...]
) -> Fact[Kind] | None:
    stated = metadata.get("general.type")
    if isinstance(stated, str) and stated in _STATED:
        return Fact(_STATED[stated], "gguf:general.type")
    if "adapter.type" in metadata:
        return Fact("adapter", "gguf:adapter.type")
    if architecture == "clip" or architecture in _OTHERS or not architecture:
        return Fact("projector" if architecture == "clip" else "other", "gguf:general.architecture")
    if not tensors and isinstance(token_texts(metadata), ArrayValue):
        return Fact("vocabulary", "derived:tokens without tensors")
    return None
