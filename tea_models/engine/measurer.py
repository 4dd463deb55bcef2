"""Who answers "what does it take": the engine's dry run where that works, the formulas where it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tea_models.engine.compute_buffers import compute_bytes
from tea_models.engine.formula import KV_TYPES, MIB, MemoryUse, cache_layout, kv_cache_bytes, pad
from tea_models.engine.probe import LIBRARIES, Point, Prober, RefusedError
from tea_models.engine.probe_process import ProbeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tea_models.profile import ModelProfile

# Python with the engine loaded, and what the engine keeps for each piece of the vocabulary.
_ENGINE = 54 * MIB
_PIECE = 121
#: What a process with a model takes beside weights, cache and buffers, where nothing else is known.
PROCESS = _ENGINE + LIBRARIES
# The dry run makes the table of the cache's cells, in time and memory that grow with the context: 40 s at 100 million.
_LARGEST_MEASURED = 1 << 22


class Measurer(Protocol):
    """Answers what settings take."""

    @property
    def reason(self) -> str:
        """Why the answers are estimates; empty where they are measured."""

    def measure(self, points: Sequence[Point]) -> list[MemoryUse | RefusedError]:
        """What each combination of settings takes, or why it is refused."""

    def close(self) -> None:
        """Give back what is held open."""


class Estimator:
    """Answers by formula.

    Args:
        profile: The model.
        reason: Why there is no measurement.
    """

    def __init__(self, profile: ModelProfile, reason: str = "") -> None:
        self.reason = reason
        self._profile = profile
        self._layout = cache_layout(profile)

    def measure(self, points: Sequence[Point]) -> list[MemoryUse | RefusedError]:
        """What each combination of settings takes by formula."""
        return [self._estimate(point) for point in points]

    def close(self) -> None:
        """Nothing is held open."""

    def _estimate(self, point: Point) -> MemoryUse | RefusedError:
        layout, profile = self._layout, self._profile
        flash_attn = point.flash_attn is not False
        if not flash_attn and point.type_v not in ("f32", "f16", "bf16"):
            return RefusedError("a quantised value cache needs flash attention")
        for which, kv_type, size in (
            ("key", point.type_k, layout.head_size_key),
            ("value", point.type_v, layout.head_size_value),
        ):
            block = KV_TYPES[kv_type][1]
            if size % block:
                return RefusedError(
                    f"{kv_type} comes in blocks of {block}, which do not divide {which} heads of {size}"
                )
        n_ctx = pad(point.n_ctx, 256)
        batch = min(point.n_batch, n_ctx) if layout.layers else point.n_batch
        ubatch = min(point.n_ubatch, batch)
        cache = kv_cache_bytes(
            layout,
            n_ctx=n_ctx,
            n_ubatch=ubatch,
            type_k=point.type_k,
            type_v=point.type_v,
            swa_full=point.swa_full,
            flash_attn=flash_attn,
            n_seq_max=point.n_seq_max,
        )
        compute = compute_bytes(
            profile,
            layout,
            n_ctx=n_ctx,
            n_batch=batch,
            n_ubatch=ubatch,
            swa_full=point.swa_full,
            flash_attn=flash_attn,
            embeddings=point.embeddings,
            type_k=point.type_k,
            type_v=point.type_v,
        )
        vocabulary = profile.tokenizer.vocab_size.value or 0
        use = MemoryUse(
            weights=profile.weights.total,
            kv_cache=cache,
            compute=compute,
            overhead=_ENGINE + _PIECE * vocabulary + 4 * vocabulary + LIBRARIES,
            method="estimated",
            n_ctx=n_ctx,
            flash_attn=flash_attn,
        )
        return _on_gpu(use, profile, point.n_gpu_layers) if point.n_gpu_layers else use


def _on_gpu(use: MemoryUse, profile: ModelProfile, layers: int) -> MemoryUse:
    """The last layers and their cache go to the GPU, the output with the last of them (`llama_model::load_tensors`)."""
    blocks = profile.weights.blocks
    count = len(blocks) + 1 if layers < 0 else min(layers, len(blocks) + 1)
    moved = sum(blocks[max(0, len(blocks) + 1 - count) :])
    if count:
        moved += (profile.weights.output or profile.weights.token_embedding) + profile.weights.other
    share = min(1.0, max(0, count - 1) / max(1, len(blocks)))
    return replace(use, devices={"GPU": (moved, int(use.kv_cache * share), use.compute)})


class Measured:
    """Answers by the engine's dry run; by formula from the moment on in which that fails, and for absurd contexts.

    Args:
        prober: The dry run.
        profile: The model.
    """

    def __init__(self, prober: Prober, profile: ModelProfile) -> None:
        self.reason = ""
        self._prober = prober
        self._fallback = Estimator(profile)

    def measure(self, points: Sequence[Point]) -> list[MemoryUse | RefusedError]:
        """What each combination of settings takes, measured if that works."""
        small = [point for point in points if point.n_ctx <= _LARGEST_MEASURED]
        measured: list[MemoryUse | RefusedError] = []
        if small and not self.reason:
            try:
                measured = self._prober.measure(small)
            except ProbeError as error:
                self.reason = error.message
        answers = dict(zip(small, measured or self._fallback.measure(small), strict=True))
        return [answers[point] if point in answers else self._fallback.measure([point])[0] for point in points]

    def close(self) -> None:
        """End the dry run."""
        self._prober.close()
