"""The quantisation of a file as people name it, and whether its tensors agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tea_models.gguf.header import TensorInfo
from tea_models.gguf.types import FILE_TYPE_GUESSED, FILE_TYPES, GGML_TYPES, REMOVED_FILE_TYPES

_BLOCKS = {kind.name: kind.block_size for kind in GGML_TYPES.values()}
_PLAIN = {"F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"}


def file_type_name(file_type: int) -> str | None:
    """The name of a `general.file_type`, such as `Q4_K_M`; None for an unknown number."""
    number = file_type & ~FILE_TYPE_GUESSED
    return FILE_TYPES[number][0] if number in FILE_TYPES else REMOVED_FILE_TYPES.get(number)


def tensor_type_shares(tensors: Iterable[TensorInfo]) -> list[tuple[str, float]]:
    """Tensor types with their share of all weights, the largest first."""
    counts: dict[str, int] = {}
    for info in tensors:
        counts[info.type.name] = counts.get(info.type.name, 0) + info.elements
    total = sum(counts.values()) or 1
    return sorted(((name, count / total) for name, count in counts.items()), key=lambda item: -item[1])


def file_type_mismatch(file_type: int, tensors: Sequence[TensorInfo]) -> str | None:
    """Say how the tensors contradict `general.file_type`, or None where they don't."""
    number = file_type & ~FILE_TYPE_GUESSED
    matrices = [info for info in tensors if len(info.shape) > 1 and info.elements]
    if number not in FILE_TYPES or not matrices:
        return None
    name, wanted = FILE_TYPES[number]
    # A mix such as Q4_K_M has several types: the one it is named for only has to be there. Where that does not divide
    # the rows, llama-quantize takes another (`tensor_type_fallback`).
    present = {info.type.name for info in matrices}
    if wanted in _PLAIN:
        agrees = wanted in present and present <= _PLAIN and (wanted != "F32" or present == {"F32"})
    else:
        agrees = wanted in present or any(info.shape[0] % _BLOCKS[wanted] for info in matrices)
    if agrees:
        return None
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in tensor_type_shares(matrices)[:3])
    return f"general.file_type says {name}, but the weights are {shares}"
