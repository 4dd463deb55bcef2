"""Who answers "what does it take": the engine's dry run where that works, the formulas where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tea_models.engine.estimator import Estimator
from tea_models.engine.probe_process import ProbeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tea_models.engine.engine_settings import EngineSettings
    from tea_models.engine.formula import MemoryUse
    from tea_models.engine.probe import Prober, RefusedError
    from tea_models.profile.facts import ModelProfile

# The dry run makes the table of the cache's cells, in time and memory that grow with the context: 40 s at 100 million.
_LARGEST_MEASURED = 1 << 22


class Measurer(Protocol):
    """Answers what settings take."""

    @property
    def reason(self) -> str:
        """Why the answers are estimates; empty where they are measured."""

    def measure(self, points: Sequence[EngineSettings]) -> list[MemoryUse | RefusedError]:
        """What each combination of settings takes, or why it is refused."""

    def close(self) -> None:
        """Give back what is held open."""


class Measured:
    """Answers by the engine's dry run; by formula from the moment on in which that fails, and for absurd contexts."""

    def __init__(self, prober: Prober, profile: ModelProfile) -> None:
        self.reason = ""
        self._prober = prober
        self._fallback = Estimator(profile)

    def measure(self, points: Sequence[EngineSettings]) -> list[MemoryUse | RefusedError]:
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
