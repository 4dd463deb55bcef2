"""The quantisation of a file as people name it, and whether its tensors agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.gguf.types import FILE_TYPE_GUESSED, FILE_TYPES, GGML_TYPES, REMOVED_FILE_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tea_models.gguf.header import TensorInfo

# What llama-quantize takes where a row is no multiple of the type's block (llama-quant.cpp, tensor_type_fallback).
_FALLBACKS = {
    "IQ1_S": "IQ4_NL",
    "IQ1_M": "IQ4_NL",
    "IQ2_XXS": "IQ4_NL",
    "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL",
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q2_0": "Q4_0",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_BLOCKS = {kind.name: kind.block_size for kind in GGML_TYPES.values()}
_PLAIN = {"F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"}


def file_type_name(file_type: int) -> str | None:
    """The name of a `general.file_type`, such as `Q4_K_M`; None for an unknown number."""
    number = file_type & ~FILE_TYPE_GUESSED
    if number in FILE_TYPES:
        return FILE_TYPES[number][0]
    return REMOVED_FILE_TYPES.get(number)


def tensor_type_shares(tensors: Iterable[TensorInfo]) -> list[tuple[str, float]]:
    """Tensor types with their share of all weights, the largest first."""
    counts: dict[str, int] = {}
    for info in tensors:
        counts[info.type.name] = counts.get(info.type.name, 0) + info.elements
    total = sum(counts.values()) or 1
    return sorted(((name, count / total) for name, count in counts.items()), key=lambda item: -item[1])


def file_type_mismatch(file_type: int, tensors: Sequence[TensorInfo]) -> str | None:
    """Say how the tensors contradict `general.file_type`, or None where they don't.

    A mix such as Q4_K_M has several types, and rows that don't divide into blocks get another one; so the type a file
    is named for only has to be there, or what llama-quantize takes for it. A file named for an unquantised type must
    not have quantised matrices.
    """
    number = file_type & ~FILE_TYPE_GUESSED
    matrices = [info for info in tensors if len(info.shape) > 1 and info.elements]
    if number not in FILE_TYPES or not matrices:
        return None
    name, wanted = FILE_TYPES[number]
    present = {info.type.name for info in matrices}
    if wanted in _PLAIN:
        agrees = wanted in present and present <= _PLAIN and (wanted != "F32" or present == {"F32"})
    else:
        agrees = wanted in present or _fell_back(wanted, matrices)
    if agrees:
        return None
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in tensor_type_shares(matrices)[:3])
    return f"general.file_type says {name}, but the weights are {shares}"


def _fell_back(wanted: str, matrices: Sequence[TensorInfo]) -> bool:
    block = _BLOCKS[wanted]
    return any(info.type.name in (_FALLBACKS.get(wanted), "F16") and info.shape[0] % block for info in matrices)
