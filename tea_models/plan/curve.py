"""Memory against context: what a model takes at every context up to the trained one, as numbers and as a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tea_models.engine.probe import RefusedError
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.engine.estimator import Estimator
    from tea_models.engine.formula import MemoryUse
    from tea_models.plan.types import RunPlan

#: KV type → (context, what it takes), contexts rising; the other settings are as planned.
Curve = dict[str, list[tuple[int, "MemoryUse"]]]


def memory_curve(plan: RunPlan, measurer: Estimator) -> Curve:
    """Measure memory at contexts from 512 tokens to the trained or planned one."""
    planned = plan.settings
    most = max(plan.context_length or 0, planned.n_ctx, 512)
    powers = {1 << power for power in range(9, 31) if 1 << power < most}
    eighths = {most * part // 8 // 256 * 256 for part in range(1, 8)}
    contexts = sorted(n_ctx for n_ctx in powers | eighths | {most, planned.n_ctx} if n_ctx >= 256)
    curve: Curve = {}
    for kv_type in dict.fromkeys((planned.type_k, "f16", "q8_0", "q4_0")):
        points = [replace(planned, n_ctx=n_ctx, type_k=kv_type, type_v=kv_type) for n_ctx in contexts]
        answers = zip(contexts, measurer.measure(points), strict=True)
        found = [(n_ctx, answer) for n_ctx, answer in answers if not isinstance(answer, RefusedError)]
        if found:
            curve[kv_type] = found
    return curve


def curve_json(curve: Curve) -> dict[str, Any]:
    """Contexts and bytes by KV type."""
    return {
        kv_type: [
            {"n_ctx": n_ctx, "kv_cache": use.kv_cache, "compute": use.compute, "total": use.total}
            for n_ctx, use in points
        ]
        for kv_type, points in curve.items()
    }


def draw_text(plan: RunPlan, curve: Curve, width: int) -> list[str]:
    """A bar for each of some contexts, with the KV cache told apart, and where the budget ends."""
    points = curve.get(plan.settings.type_k) or next(iter(curve.values()))
    powers = {512 << power for power in range(24)}
    shown = [(n_ctx, use) for n_ctx, use in points if n_ctx in powers or n_ctx in (points[-1][0], plan.settings.n_ctx)]
    shown = shown[-9:]
    room = max(16, width - 34)
    most = max(use.total for _, use in shown)
    lines = []
    for n_ctx, use in shown:
        bar = "█" * max(1, round(room * (use.total - use.kv_cache) / most)) + "▒" * round(room * use.kv_cache / most)
        mark = "too much" if use.total > plan.memory.budget else ""
        mark = "◂ planned" if n_ctx == plan.settings.n_ctx else mark
        lines.append(f"{n_ctx:>9,}  {human_bytes(use.total):>9}  {bar} {mark}".rstrip())
    return lines
