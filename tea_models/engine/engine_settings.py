"""`EngineSettings`: what llama.cpp opens a model and a context with, from the dry run through the plan to the load."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tea_models.gguf.types import GGML_TYPES

#: The types that a KV cache can have.
KV_TYPES = {
    name: next(kind for kind in GGML_TYPES.values() if kind.name.lower() == name)
    for name in ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
}

# What a context is opened with as it is.
_OF_A_CONTEXT = ("n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "swa_full", "n_seq_max")
# What memory does not depend on.
_WITHOUT_MEMORY = ("n_threads", "n_threads_batch", "use_mmap")
# The engine's other arguments are no settings of a plan: how many sequences there are is the runtime's business.
_NOT_PLANNED = ("n_seq_max", "embeddings")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings, named as llama.cpp and llama-cpp-python name them."""

    n_ctx: int  # the largest context that may be used, of all sequences together
    n_batch: int = 512  # logical, in tokens
    n_ubatch: int = 512  # physical
    n_threads: int = 1  # for one token at a time
    n_threads_batch: int = 1  # for prompts
    n_gpu_layers: int = 0  # -1 means all
    flash_attn: bool | None = None  # attention without the matrix of all scores; None lets the engine decide
    type_k: str = "f16"  # of the key cache
    type_v: str = "f16"
    swa_full: bool = False  # keep the whole context in layers with a sliding window
    use_mmap: bool = True
    n_seq_max: int = 1  # sequences at once
    embeddings: bool = False

    def deciding_memory(self) -> dict[str, Any]:
        """The settings that memory depends on, by name, as llama.cpp takes them."""
        return {
            name: value for name, value in (asdict(self) | self.type_numbers()).items() if name not in _WITHOUT_MEMORY
        }

    def context_parameters(self) -> dict[str, Any]:
        """The fields of `llama_context_params` that the settings decide."""
        flash_attn = -1 if self.flash_attn is None else int(self.flash_attn)
        given = {name: getattr(self, name) for name in _OF_A_CONTEXT}
        return given | self.type_numbers() | {"flash_attn_type": flash_attn}

    def to_json(self) -> dict[str, Any]:
        """The settings of a plan, by name."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_PLANNED}

    def type_numbers(self) -> dict[str, int]:
        """The types as llama.cpp's numbers (ggml.h, `enum ggml_type`)."""
        return {"type_k": KV_TYPES[self.type_k].id, "type_v": KV_TYPES[self.type_v].id}
