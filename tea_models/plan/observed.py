"""What loading a model has really taken here, recorded by the runtime and compared with the plan.

One small JSON file a model, in the hidden folder of the store: the last loads with their settings, predicted and
actual bytes. A prediction that parts from reality is shown by `plan` and `doctor` instead of being trusted for ever.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tea_models.disk.kept_json import keep, read_kept
from tea_models.engine.engine_settings import EngineSettings
from tea_models.plan.types import RunPlan
from tea_models.sizes import human_bytes

_FORMAT = 2
_KEPT = 20
# When a prediction is called wrong: relative differences below and above it, and the least difference in bytes. The
# engine's log gives sizes to 0.01 MiB, a buffer each. Of a process's peak less says nothing (buffers that were never
# touched take nothing), and it may do other work beside the model.
_TOLERANCE = {
    "kv_cache": (0.0, 0.0, 64 * 1024),
    "compute": (0.02, 0.02, 64 * 1024),
    "peak": (math.inf, 0.10, 64 * 1024 * 1024),
}


@dataclass(frozen=True, slots=True)
class ObservedLoad:
    """One load of a model: its settings, and the bytes of each part that were predicted for them and that it took."""

    name: str
    when: str  # ISO 8601 in UTC
    engine: str  # version of llama-cpp-python
    settings: dict[str, Any]  # with `auto` the `n_ctx` that was opened may be smaller than the plan's
    predicted: dict[str, int]
    actual: dict[str, int]  # `kv_cache`, `compute`, `peak` (of the process), as far as known

    def differences(self) -> dict[str, float]:
        """Relative differences (actual / predicted - 1) of the parts that are beyond tolerance."""
        found = {}
        for part, (below, above, least) in _TOLERANCE.items():
            predicted, actual = self.predicted.get(part), self.actual.get(part)
            if predicted and actual is not None and abs(actual - predicted) >= least:
                difference = actual / predicted - 1
                if not -below <= difference <= above:
                    found[part] = difference
        return found


def record_load(
    store_dir: Path, plan: RunPlan, *, engine: str, actual: dict[str, int], n_ctx: int | None = None
) -> bool:
    """Record what a load took, with the context that was opened; False where it can't be kept."""
    settings, use = plan.settings, plan.memory.use
    predicted = {"peak": use.total}
    if n_ctx in (None, settings.n_ctx) and use.method == "measured":
        predicted |= {"kv_cache": use.kv_cache, "compute": use.compute}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    same = _same(settings) | {"n_ctx": n_ctx or settings.n_ctx}
    load = ObservedLoad(plan.name, when, engine, same, predicted, actual)
    path = _path(store_dir, plan.header_sha256)
    loads = [asdict(item) for item in (*_read(path), load)][-_KEPT:]
    return keep(path, {"format": _FORMAT, "loads": loads})


def read_observed(store_dir: Path, plan: RunPlan) -> dict[str, Any] | None:
    """The last load with a plan's own settings, as `plan --json` shows it; None where there was none."""
    for load in reversed(_read(_path(store_dir, plan.header_sha256))):
        if load.settings == _same(plan.settings):
            warnings = [describe(load, part, difference) for part, difference in load.differences().items()]
            told = ("when", "engine", "predicted", "actual")
            return {name: getattr(load, name) for name in told} | {"warnings": warnings}
    return None


def all_observed(store_dir: Path) -> list[ObservedLoad]:
    """The last load of each model, newest first."""
    files = sorted((store_dir / ".tea" / "observed").glob("*.json"))
    last = [loads[-1] for loads in map(_read, files) if loads]
    return sorted(last, key=lambda load: load.when, reverse=True)


def describe(load: ObservedLoad, part: str, difference: float) -> str:
    """One sentence on a prediction that was wrong."""
    names = {"kv_cache": "the KV cache", "compute": "the compute buffers", "peak": "the process at its peak"}
    predicted, actual = human_bytes(load.predicted[part]), human_bytes(load.actual[part])
    way = "more" if difference > 0 else "less"
    return f"{names[part]} took {actual}, {abs(difference):.0%} {way} than the {predicted} planned"


def _same(settings: EngineSettings) -> dict[str, Any]:
    """A load tells something about a plan if these were the same."""
    names = ("n_ctx", "n_ubatch", "type_k", "type_v", "swa_full", "n_gpu_layers")
    return {name: getattr(settings, name) for name in names}


def _path(store_dir: Path, header_sha256: str) -> Path:
    return store_dir / ".tea" / "observed" / f"{header_sha256[:32]}.json"


def _read(path: Path) -> list[ObservedLoad]:
    document = read_kept(path)
    try:
        return [ObservedLoad(**item) for item in document["loads"]] if document["format"] == _FORMAT else []
    except (TypeError, KeyError):
        return []
