"""The largest context that fits, from few measurements: the memory grows evenly between two contexts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tea_models.engine.probe import RefusedError
from tea_models.plan.types import Rejected
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tea_models.engine.engine_settings import EngineSettings
    from tea_models.engine.formula import MemoryUse
    from tea_models.engine.measurer import Measurer

_STEP = 256  # the engine pads contexts to this


class ContextSearch:
    """Asks a measurer for as few points as it can, and remembers the answers.

    Args:
        measurer: Answers what settings take.
        excess: Bytes by which an answer is too large; it fits where they are no more than 0.
        whole_batch: The batch has to hold the context, so both grow together.
    """

    def __init__(self, measurer: Measurer, excess: Callable[[MemoryUse], int], *, whole_batch: bool) -> None:
        self._measurer = measurer
        self._excess = excess
        self._whole_batch = whole_batch
        self._known: dict[EngineSettings, MemoryUse | RefusedError] = {}

    def at(self, point: EngineSettings, n_ctx: int) -> EngineSettings:
        """The same settings with another context."""
        if self._whole_batch:
            return replace(point, n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx)
        return replace(point, n_ctx=n_ctx)

    def prepare(self, points: Sequence[EngineSettings]) -> None:
        """Measure points that will be asked for, in one run of the engine."""
        unknown = [point for point in dict.fromkeys(points) if point not in self._known]
        if unknown:
            self._known.update(zip(unknown, self._measurer.measure(unknown), strict=True))

    def use(self, point: EngineSettings, *, keep_errors: bool) -> MemoryUse | None:
        """What settings take; None where the engine refuses them.

        Raises:
            RefusedError: It refuses them, and `keep_errors` is set.
        """
        self.prepare([point])
        answer = self._known[point]
        if isinstance(answer, RefusedError):
            if keep_errors:
                raise answer
            return None
        return answer

    def largest(
        self,
        point: EngineSettings,
        most: int,
        least: int,
        *,
        prepare: Sequence[EngineSettings] = (),
        keep_errors: bool = False,
    ) -> tuple[EngineSettings, MemoryUse] | None:
        """The largest context up to `most` that fits; None where not even `least` does.

        Args:
            point: The other settings.
            most: Tokens.
            least: Tokens.
            prepare: Further points to measure in the same run.
            keep_errors: Say why the engine refuses the settings, where it refuses them at `least` too.

        Raises:
            RefusedError: It refuses them, and `keep_errors` is set.
        """
        steps = self.ladder(point, most, least)
        self.prepare([*steps, *prepare])
        too_large: tuple[int, int] | None = None  # a context, and the bytes by which it is too large
        for step in steps:
            use = self.use(step, keep_errors=keep_errors and step is steps[-1])
            if use is not None and self._fits(use):
                return self._refine(step, use, too_large)
            if use is not None:
                too_large = (step.n_ctx, self._excess(use))
        return None

    def ladder(self, point: EngineSettings, most: int, least: int) -> list[EngineSettings]:
        """The settings at `most` tokens and at half as many each, down to `least`."""
        contexts = [most]
        while contexts[-1] // 2 > least:
            contexts.append(max(least, contexts[-1] // 2 // _STEP * _STEP))
        contexts.append(min(most, least))
        return [self.at(point, n_ctx) for n_ctx in dict.fromkeys(contexts)]

    def _fits(self, use: MemoryUse) -> bool:
        return self._excess(use) <= 0

    def _refine(
        self, point: EngineSettings, use: MemoryUse, too_large: tuple[int, int] | None
    ) -> tuple[EngineSettings, MemoryUse]:
        """Close in on the limit between a context that fits and one that does not.

        Memory grows nearly evenly between two contexts, so the guess is good; what lies around it is measured with it.
        """
        if too_large is None:
            return point, use
        low, high, over = point.n_ctx, *too_large
        best = (point, use)
        for _ in range(4):
            room = -self._excess(best[1])
            guess = low + (high - low) * room // max(1, room + over)
            around = [guess + offset * _STEP for offset in (-8, -4, -2, -1, 0, 1, 2, 4, 8)]
            even = [low + (high - low) * part // 8 for part in range(1, 8)]
            contexts = sorted({n_ctx // _STEP * _STEP for n_ctx in (*around, *even)})
            points = [self.at(point, n_ctx) for n_ctx in contexts if low < n_ctx < high]
            if not points:
                break
            self.prepare(points)
            for step in points:
                found = self.use(step, keep_errors=False)
                if found is not None and self._fits(found):
                    best, low = (step, found), step.n_ctx
                    continue
                high = step.n_ctx
                over = self._excess(found) if found is not None else over
                break
        return best

    def gpu_layers(self, point: EngineSettings, layers: int) -> tuple[int, str, list[Rejected]]:
        """As many layers on the GPUs as fit there at a useful context.

        Args:
            point: The other settings.
            layers: Blocks of the model.

        Returns:
            The number (-1 for all), the reason, and what was rejected.
        """
        everything = self.use(replace(point, n_gpu_layers=-1), keep_errors=False)
        if everything is not None and self._fits(everything):
            taken = sum(sum(parts) for parts in everything.devices.values())
            return -1, f"all {layers} layers fit on the GPU: {human_bytes(taken)}", []
        rejected = []
        if everything is not None:
            taken = sum(sum(parts) for parts in everything.devices.values())
            rejected.append(Rejected(-1, f"all layers would take {human_bytes(taken)} of it"))
        low, high = 0, layers
        while low < high:
            tries = sorted({low + max(1, (high - low) * part // 8) for part in range(1, 9)})
            candidates = [replace(point, n_gpu_layers=count) for count in tries if count <= high]
            self.prepare(candidates)
            fitting = [
                candidate.n_gpu_layers
                for candidate in candidates
                if (use := self.use(candidate, keep_errors=False)) is not None and self._fits(use)
            ]
            best = max(fitting, default=low)
            larger = [count for count in tries if count > best]
            if best == low and larger == tries:
                high = min(tries) - 1
            else:
                low, high = best, (min(larger) - 1 if larger else high)
        reason = f"{low} of {layers} layers fit on the GPU" if low else "not one layer fits on the GPU"
        return low, reason, rejected
