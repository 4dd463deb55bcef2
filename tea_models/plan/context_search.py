"""What settings take, asked of a measurer, and the largest context and number of GPU layers that fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tea_models.engine.formula import pad
from tea_models.engine.probe import RefusedError
from tea_models.plan.types import Rejected
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.engine.engine_settings import EngineSettings
    from tea_models.engine.estimator import Estimator
    from tea_models.engine.formula import MemoryUse
    from tea_models.plan.types import Budget

_STEP = 256  # the engine pads contexts to this


class ContextSearch:
    """Asks a measurer what fits; with `whole_batch` the batch has to hold the context, so both grow together."""

    def __init__(self, measurer: Estimator, budget: Budget, *, whole_batch: bool) -> None:
        self._measurer = measurer
        self._budget = budget
        self._whole_batch = whole_batch

    def at(self, point: EngineSettings, n_ctx: int) -> EngineSettings:
        """The same settings with another context."""
        if self._whole_batch:
            return replace(point, n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx)
        return replace(point, n_ctx=n_ctx)

    def require(self, point: EngineSettings) -> MemoryUse:
        """What settings take; a RefusedError where the engine refuses them."""
        (answer,) = self._measurer.measure([point])
        if isinstance(answer, RefusedError):
            raise answer
        return answer

    def use(self, point: EngineSettings) -> MemoryUse | None:
        """What settings take; None where the engine refuses them."""
        (answer,) = self._measurer.measure([point])
        return None if isinstance(answer, RefusedError) else answer

    def fitting(self, point: EngineSettings) -> MemoryUse | None:
        """What settings take; None where that does not fit, or the engine refuses them."""
        use = self.use(point)
        return use if use is not None and self._budget.excess(use) <= 0 else None

    def largest(self, point: EngineSettings, most: int, least: int) -> tuple[EngineSettings, MemoryUse] | None:
        """The settings with the largest context up to `most` that fits; None where not even `least` does."""

        def fit(n_ctx: int) -> tuple[EngineSettings, MemoryUse] | None:
            settings = self.at(point, n_ctx)
            use = self.fitting(settings)
            return (settings, use) if use is not None else None

        low, high = min(least, most), most
        whole = fit(most)
        best = whole or fit(low)
        while best is not None and best is not whole:
            middle = pad((low + high) // 2, _STEP)
            if middle >= high:
                break
            tried = fit(middle)
            if tried is not None:
                best, low = tried, middle
            else:
                high = middle
        return best

    def gpu_layers(self, point: EngineSettings, layers: int) -> tuple[int, str, list[Rejected]]:
        """As many layers on the GPUs as fit there (-1 for all) at a point, the reason, and what was rejected."""
        everything = self.use(replace(point, n_gpu_layers=-1))
        rejected = []
        if everything is not None:
            taken = human_bytes(sum(sum(parts) for parts in everything.devices.values()))
            if self._budget.excess(everything) <= 0:
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
