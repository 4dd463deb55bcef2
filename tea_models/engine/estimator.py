"""Memory by formula, where the engine can't be asked: an upper bound. The KV cache in it is exact to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tea_models.engine.engine_settings import KV_TYPES, EngineSettings
from tea_models.engine.formula import MemoryUse, cache_layout, compute_bytes, kv_cache_bytes, pad
from tea_models.engine.probe import ENGINE, LIBRARIES, Prober, RefusedError
from tea_models.engine.probe_process import ProbeError
from tea_models.profile.facts import ModelProfile

# What the engine keeps for each piece of the vocabulary, its logit included.
_PIECE = 121 + 4
#: What a process with a model takes beside weights, cache and buffers, where nothing else is known.
PROCESS = ENGINE + LIBRARIES
# Of quantised weights the engine keeps some rearranged for the processor, beside the mapped file.
_REARRANGED = 16
#: An estimate is never below what the engine reports, and above it by this share at most: measured for 36 architectures
#: and two real files, at up to 131,072 tokens in batches up to 512 (`tests/test_memory.py` and `tests/test_probe.py`).
ESTIMATE_ERROR = 0.10
# The dry run makes the table of the cache's cells, in time and memory that grow with the context: 40 s at 100 million.
_LARGEST_MEASURED = 1 << 22


class Estimator:
    """Answers by formula what settings take; `reason` is why, empty where the answers are measured after all."""

    def __init__(self, profile: ModelProfile, reason: str = "") -> None:
        self.reason = reason
        self._profile = profile
        self._layout = cache_layout(profile)

    def measure(self, points: Sequence[EngineSettings]) -> list[MemoryUse | RefusedError]:
        """What each combination of settings takes, or why it is refused."""
        return [self._estimate(point) for point in points]

    def close(self) -> None:
        """Give back what is held open: nothing."""

    def _estimate(self, point: EngineSettings) -> MemoryUse | RefusedError:
        layout, profile = self._layout, self._profile
        if point.flash_attn is False and point.type_v not in ("f32", "f16", "bf16"):
            return RefusedError("a quantised value cache needs flash attention")
        heads = (("key", point.type_k, layout.head_size_key), ("value", point.type_v, layout.head_size_value))
        for which, kv_type, size in heads:
            block = KV_TYPES[kv_type].block_size
            if size % block:
                why = f"{kv_type} comes in blocks of {block}, which do not divide {which} heads of {size}"
                return RefusedError(why)
        n_ctx = pad(point.n_ctx, 256)
        batch = min(point.n_batch, n_ctx) if layout.layers else point.n_batch
        point = replace(point, n_ctx=n_ctx, n_ubatch=min(point.n_ubatch, batch))
        vocabulary = profile.tokenizer.vocab_size.value or 0
        weights = profile.weights.total
        use = MemoryUse(
            weights=weights + (weights // _REARRANGED if profile.bits_per_weight.value < 16 else 0),
            kv_cache=kv_cache_bytes(layout, point),
            compute=compute_bytes(profile, layout, point),
            overhead=ENGINE + _PIECE * vocabulary + LIBRARIES,
            method="estimated",
            flash_attn=point.flash_attn is not False,
        )
        return _on_gpu(use, profile, point.n_gpu_layers) if point.n_gpu_layers else use


class Measured(Estimator):
    """Answers by the engine's dry run; by formula from the moment on in which that fails, and for absurd contexts."""

    def __init__(self, prober: Prober, profile: ModelProfile) -> None:
        super().__init__(profile)
        self._prober = prober

    def measure(self, points: Sequence[EngineSettings]) -> list[MemoryUse | RefusedError]:
        """What each combination of settings takes, measured if that works."""
        if not self.reason and all(point.n_ctx <= _LARGEST_MEASURED for point in points):
            try:
                return self._prober.measure(points)
            except ProbeError as error:
                self.reason = error.message
        return super().measure(points)

    def close(self) -> None:
        self._prober.close()


def _on_gpu(use: MemoryUse, profile: ModelProfile, layers: int) -> MemoryUse:
    """The last layers and their cache go to the GPU, the output with the last of them (`llama_model::load_tensors`)."""
    blocks = profile.weights.blocks
    count = len(blocks) + 1 if layers < 0 else min(layers, len(blocks) + 1)
    moved = sum(blocks[max(0, len(blocks) + 1 - count) :])
    if count:
        moved += (profile.weights.output or profile.weights.token_embedding) + profile.weights.other
    share = min(1.0, max(0, count - 1) / max(1, len(blocks)))
    return replace(use, devices={"GPU": (moved, int(use.kv_cache * share), use.compute)})
