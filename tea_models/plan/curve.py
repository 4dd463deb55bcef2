"""Memory against context: what a model takes at every context up to the trained one, for a picture and a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tea_models.engine.probe import RefusedError

if TYPE_CHECKING:
    from tea_models.engine.estimator import Estimator
    from tea_models.engine.formula import MemoryUse
    from tea_models.plan.types import RunPlan


@dataclass(frozen=True, slots=True)
class Curve:
    """Memory at several contexts, with the other settings as planned.

    Attributes:
        series: KV type → (context, what it takes), contexts rising.
        budget: Bytes that may be used.
    """

    series: dict[str, tuple[tuple[int, MemoryUse], ...]]
    budget: int

    def to_json(self) -> dict[str, Any]:
        """Contexts and bytes by KV type."""
        return {
            kv_type: [
                {"n_ctx": n_ctx, "kv_cache": use.kv_cache, "compute": use.compute, "total": use.total}
                for n_ctx, use in points
            ]
            for kv_type, points in self.series.items()
        }


def memory_curve(plan: RunPlan, measurer: Estimator) -> Curve:
    """Measure memory at contexts from 512 tokens to the trained or planned one."""
    most = max(plan.context_length or 0, plan.settings.n_ctx, 512)
    contexts = sorted({512, *(size for size in (1 << power for power in range(10, 31)) if size < most), most})
    contexts = sorted({*contexts, *(most * part // 8 // 256 * 256 for part in range(1, 8)), plan.settings.n_ctx})
    contexts = [n_ctx for n_ctx in contexts if n_ctx >= 256]
    types = dict.fromkeys((plan.settings.type_k, "f16", "q8_0", "q4_0"))
    base = plan.settings
    points = {
        (kv_type, n_ctx): replace(base, n_ctx=n_ctx, type_k=kv_type, type_v=kv_type)
        for kv_type in types
        for n_ctx in contexts
    }
    answers = dict(zip(points, measurer.measure(list(points.values())), strict=True))
    series: dict[str, tuple[tuple[int, MemoryUse], ...]] = {}
    for kv_type in types:
        found = tuple(
            (n_ctx, answer) for n_ctx in contexts if not isinstance(answer := answers[kv_type, n_ctx], RefusedError)
        )
        if found:
            series[kv_type] = found
    return Curve(series, plan.memory.budget)
