"""What settings take, asked of a measurer, and the largest context and number of GPU layers that fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tea_models.engine.formula import pad
from tea_models.engine.probe import RefusedError
from tea_models.plan.types import Rejected
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tea_models.engine.engine_settings import EngineSettings
    from tea_models.engine.estimator import Estimator
    from tea_models.engine.formula import MemoryUse

_STEP = 256  # the engine pads contexts to this


class ContextSearch:
    """Asks a measurer, and remembers the answers.

    Args:
        measurer: Answers what settings take.
        excess: Bytes by which an answer is too large; it fits where they are no more than 0.
        whole_batch: The batch has to hold the context, so both grow together.
    """

    def __init__(self, measurer: Estimator, excess: Callable[[MemoryUse], int], *, whole_batch: bool) -> None:
        self._measurer = measurer
        self._excess = excess
        self._whole_batch = whole_batch
        self._known: dict[EngineSettings, MemoryUse | RefusedError] = {}

    def at(self, point: EngineSettings, n_ctx: int) -> EngineSettings:
        """The same settings with another context."""
        if self._whole_batch:
            return replace(point, n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx)
        return replace(point, n_ctx=n_ctx)

    def use(self, point: EngineSettings) -> MemoryUse | None:
        """What settings take; None where the engine refuses them."""
        answer = self._answer(point)
        return None if isinstance(answer, RefusedError) else answer

    def require(self, point: EngineSettings) -> MemoryUse:
        """What settings take.

        Raises:
            RefusedError: The engine refuses them.
        """
        answer = self._answer(point)
        if isinstance(answer, RefusedError):
            raise answer
        return answer

    def fitting(self, point: EngineSettings) -> MemoryUse | None:
        """What settings take; None where that does not fit, or the engine refuses them."""
        use = self.use(point)
        return use if use is not None and self._excess(use) <= 0 else None

    def largest(self, point: EngineSettings, most: int, least: int) -> tuple[EngineSettings, MemoryUse] | None:
        """The settings with the largest context up to `most` that fits; None where not even `least` does."""
        least = min(least, most)
        for n_ctx in (most, least):
            found = self._fitting_at(point, n_ctx)
            if found is not None:
                break
        low, high = least, most
        while found is not None and found[0].n_ctx < most:
            middle = pad((low + high) // 2, _STEP)
            if middle >= high:
                break
            tried = self._fitting_at(point, middle)
            if tried is not None:
                found, low = tried, middle
            else:
                high = middle
        return found

    def _fitting_at(self, point: EngineSettings, n_ctx: int) -> tuple[EngineSettings, MemoryUse] | None:
        point = self.at(point, n_ctx)
        use = self.fitting(point)
        return (point, use) if use is not None else None

    def gpu_layers(self, point: EngineSettings, layers: int) -> tuple[int, str, list[Rejected]]:
        """As many layers on the GPUs as fit there at a useful context.

        Returns:
            The number (-1 for all), the reason, and what was rejected.
        """
        everything = self.use(replace(point, n_gpu_layers=-1))
        rejected = []
        if everything is not None:
            taken = human_bytes(sum(sum(parts) for parts in everything.devices.values()))
            if self._excess(everything) <= 0:
                return -1, f"all {layers} layers fit on the GPU: {taken}", []
            rejected.append(Rejected(-1, f"all layers would take {taken} of it"))
        low, high = 0, layers + 1
        while high - low > 1:
            count = (low + high) // 2
            if self.fitting(replace(point, n_gpu_layers=count)) is not None:
                low = count
            else:
                high = count
        reason = f"{low} of {layers} layers fit on the GPU" if low else "not one layer fits on the GPU"
        return low, reason, rejected

    def _answer(self, point: EngineSettings) -> MemoryUse | RefusedError:
        if point not in self._known:
            (self._known[point],) = self._measurer.measure([point])
        return self._known[point]
