"""`EngineSettings`: what llama.cpp opens a model and a context with, from the dry run through the plan to the load."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tea_models.engine.formula import KV_TYPES

# What a context is opened with as it is.
_OF_A_CONTEXT = ("n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "swa_full", "n_seq_max")
# What memory does not depend on.
_WITHOUT_MEMORY = ("n_threads", "n_threads_batch", "use_mmap", "use_mlock")
# The engine's other arguments are no settings of a plan: how many sequences there are is the runtime's business.
_NOT_PLANNED = ("n_seq_max", "embeddings")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings, named as llama.cpp and llama-cpp-python name them.

    Attributes:
        n_ctx: The largest context that may be used, in tokens.
        n_batch: Logical batch in tokens.
        n_ubatch: Physical batch in tokens.
        n_threads: Threads for one token at a time.
        n_threads_batch: Threads for prompts.
        n_gpu_layers: Layers on a GPU; -1 means all.
        flash_attn: Attention without the matrix of all scores; None lets the engine decide.
        type_k: Type of the key cache (`f16`, `q8_0`, …).
        type_v: Type of the value cache.
        swa_full: Keep the whole context in layers with a sliding window.
        use_mmap: Map the file into memory instead of reading it.
        use_mlock: Forbid swapping of the weights.
        n_seq_max: Sequences at once.
        embeddings: The context is for embeddings.
    """

    n_ctx: int
    n_batch: int = 512
    n_ubatch: int = 512
    n_threads: int = 1
    n_threads_batch: int = 1
    n_gpu_layers: int = 0
    flash_attn: bool | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    swa_full: bool = False
    use_mmap: bool = True
    use_mlock: bool = False
    n_seq_max: int = 1
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
