"""Memory against context as a picture: an SVG file, or a few lines of a terminal."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.plan.curve import Curve
    from tea_models.plan.types import RunPlan

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 88, 150, 56, 56
# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_INK, _PALE = "#222222", "#d8d8d8"


def draw_svg(plan: RunPlan, curve: Curve) -> str:
    """Total memory at each context, a line a KV type, with the budget and the planned context marked."""
    contexts = sorted({n_ctx for points in curve.series.values() for n_ctx, _ in points})
    totals = [use.total for points in curve.series.values() for _, use in points]
    right, top = max(contexts), _ceiling(max([*totals, min(curve.budget, max(totals) * 13 // 10)]))
    area_width, area_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(n_ctx: float) -> float:
        return round(_LEFT + area_width * n_ctx / right, 1)

    def y(size: float) -> float:
        return round(_TOP + area_height * (1 - size / top), 1)

    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="13" fill="{_INK}" role="img">'
    )
    what = f"{plan.memory.method}; weights, KV cache, compute buffers, process"
    parts = [
        head,
        f"<title>{escape(plan.name)}: memory against context</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="17">{escape(plan.name)}: memory against context</text>',
        f'<text x="{_LEFT}" y="44" fill="#666666">{what}</text>',
    ]
    for step in range(5):
        size = top * step / 4
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(size)}" y2="{y(size)}" stroke="{_PALE}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(size) + 4}" text-anchor="end">{human_bytes(size)}</text>')
    bottom = _HEIGHT - _BOTTOM
    for n_ctx in _ticks(right):
        parts.append(f'<line x1="{x(n_ctx)}" x2="{x(n_ctx)}" y1="{bottom}" y2="{bottom + 5}" stroke="{_INK}"/>')
        parts.append(f'<text x="{x(n_ctx)}" y="{bottom + 20}" text-anchor="middle">{n_ctx:,}</text>')
    parts.append(f'<text x="{_LEFT + area_width / 2}" y="{_HEIGHT - 12}" text-anchor="middle">context in tokens</text>')
    if curve.budget <= top:
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(curve.budget)}" y2="{y(curve.budget)}" '
            f'stroke="{_INK}" stroke-dasharray="6 4"/>'
        )
        parts.append(f'<text x="{_LEFT + 6}" y="{y(curve.budget) - 6}">may be used: {human_bytes(curve.budget)}</text>')
    labels: list[float] = []
    for color, (kv_type, points) in zip(_COLORS, curve.series.items(), strict=False):
        path = " ".join(f"{x(n_ctx)},{y(use.total)}" for n_ctx, use in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        at = y(points[-1][1].total)
        while any(abs(at - other) < 15 for other in labels):
            at += 15
        labels.append(at)
        end = human_bytes(points[-1][1].total)
        parts.append(f'<text x="{_WIDTH - _RIGHT + 8}" y="{at + 4}" fill="{color}">KV {kv_type}: {end}</text>')
    planned, total = plan.settings.n_ctx, y(plan.memory.total)
    parts.append(f'<circle cx="{x(planned)}" cy="{total}" r="5" fill="{_INK}"/>')
    anchor, shift = ("end", -9) if planned > right / 2 else ("start", 9)
    place = f'x="{x(planned) + shift}" y="{total - 9}" text-anchor="{anchor}"'
    parts.append(f"<text {place}>planned: {planned:,}</text>")
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def draw_text(plan: RunPlan, curve: Curve, width: int) -> list[str]:
    """A bar for each of some contexts, with the KV cache told apart, and where the budget ends."""
    points = curve.series.get(plan.settings.type_k) or next(iter(curve.series.values()))
    powers = {512 << power for power in range(24)}
    shown = [(n_ctx, use) for n_ctx, use in points if n_ctx in powers or n_ctx in (points[-1][0], plan.settings.n_ctx)]
    shown = shown[-9:]
    room = max(16, width - 34)
    most = max(use.total for _, use in shown)
    lines = []
    for n_ctx, use in shown:
        bar = "█" * max(1, round(room * (use.total - use.kv_cache) / most)) + "▒" * round(room * use.kv_cache / most)
        mark = "◂ planned" if n_ctx == plan.settings.n_ctx else "" if use.total <= curve.budget else "too much"
        lines.append(f"{n_ctx:>9,}  {human_bytes(use.total):>9}  {bar} {mark}".rstrip())
    return lines


def _ceiling(size: int) -> int:
    """The next round number of bytes, so that the grid has readable steps."""
    unit = 1 << max(0, size.bit_length() - 3)
    return -(-size // unit) * unit


def _ticks(most: int) -> list[int]:
    step = max(1, most // 4)
    ticks = [step * part for part in range(5) if step * part < most]
    return [*ticks, most] if most - ticks[-1] > step // 2 else [*ticks[:-1], most]
