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

# What is an argument of the model, and what the plan of a context does not name.
_OF_THE_MODEL = ("n_gpu_layers", "use_mmap")
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

    def context_parameters(self) -> dict[str, Any]:
        """The settings as the fields of `llama_context_params`."""
        given = {name: value for name, value in asdict(self).items() if name not in _OF_THE_MODEL}
        flash_attn = given.pop("flash_attn")
        return given | self.type_numbers() | {"flash_attn_type": -1 if flash_attn is None else int(flash_attn)}

    def deciding_memory(self) -> dict[str, Any]:
        """What memory depends on: all but the threads, with the layers on a GPU."""
        parameters = self.context_parameters() | {"n_gpu_layers": self.n_gpu_layers}
        return {name: value for name, value in parameters.items() if not name.startswith("n_threads")}

    def to_json(self) -> dict[str, Any]:
        """The settings of a plan, by name."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_PLANNED}

    def type_numbers(self) -> dict[str, int]:
        """The types as llama.cpp's numbers (ggml.h, `enum ggml_type`)."""
        return {"type_k": KV_TYPES[self.type_k].id, "type_v": KV_TYPES[self.type_v].id}
