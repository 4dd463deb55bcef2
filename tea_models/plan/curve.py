"""Memory against context: what a model takes at other contexts than the planned one, for pictures."""

from __future__ import annotations

from dataclasses import replace

from tea_models.engine.estimator import Estimator
from tea_models.engine.formula import MemoryUse
from tea_models.engine.probe import RefusedError
from tea_models.plan.types import RunPlan
from tea_models.sizes import human_bytes

Curve = list[tuple[int, "MemoryUse"]]


def memory_curve(plan: RunPlan, measurer: Estimator) -> Curve:
    """What the planned settings take at contexts from 512 tokens to the trained or planned one, rising."""
    most = max(plan.context_length or 0, plan.settings.n_ctx, 512)
    powers = {1 << power for power in range(9, 31) if 1 << power < most}
    eighths = {most * part // 8 // 256 * 256 for part in range(1, 8)}
    contexts = sorted({512, most, plan.settings.n_ctx, *powers, *(n_ctx for n_ctx in eighths if n_ctx)})
    answers = measurer.measure([replace(plan.settings, n_ctx=n_ctx) for n_ctx in contexts])
    found = zip(contexts, answers, strict=True)
    return [(n_ctx, use) for n_ctx, use in found if not isinstance(use, RefusedError)]


def draw_text(plan: RunPlan, curve: Curve, width: int) -> list[str]:
    """A bar for each of some contexts, with the KV cache told apart; `width` in columns."""
    powers = {512 << power for power in range(24)}
    shown = [one for one in curve if one[0] in powers or one[0] in (curve[-1][0], plan.settings.n_ctx)][-9:]
    room, most = max(16, width - 34), max(use.total for _, use in shown)
    lines = []
    for n_ctx, use in shown:
        bar = "█" * max(1, round(room * (use.total - use.kv_cache) / most)) + "▒" * round(room * use.kv_cache / most)
        lines.append(f"{n_ctx:>9,}  {human_bytes(use.total):>9}  {bar} {verdict(plan, n_ctx, use)}".rstrip())
    return [*lines, "", "█ weights, buffers and process   ▒ KV cache"]


def verdict(plan: RunPlan, n_ctx: int, use: MemoryUse) -> str:
    """What a picture says beside a context: that it is the planned one, or takes too much."""
    if n_ctx == plan.settings.n_ctx:
        return "◂ planned"
    return "" if plan.memory.excess(use) <= 0 else "too much"
