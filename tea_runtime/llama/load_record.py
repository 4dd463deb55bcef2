"""What a load really took, measured while it runs and kept for `tea-models plan` and `doctor` to compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tea_models.plan.types import RunPlan
    from tea_runtime.llama.context import Context

# llama.cpp's log rounds each buffer to 0.01 MiB.
_ROUNDING = 0.005 * 1024 * 1024


class LoadRecorder:
    """Records each context that is opened, once it has been used."""

    def __init__(self, store_dir: Path) -> None:
        self._store_dir = store_dir
        self._before = resident()
        self._context: tuple[int, dict[str, int]] | None = None
        self.plan: RunPlan | None = None

    def opened(self, context: Context) -> None:
        """Remember what a context reserved."""
        # The plan counts the logits of a whole batch; our contexts have room for those of the last tokens only.
        actual = {}
        if not context.weights.n_swa and not context.weights.recurrent:
            # The others need more for each sequence beside the first, which the plan does not count.
            actual["kv_cache"] = sum(context.buffers("KV"))
        self._context = (context.n_ctx, actual)

    def used(self) -> None:
        """Write what was remembered, now that the buffers have been touched."""
        if self._context is None or self.plan is None:
            return
        from tea_models.plan.observed import record_load
        from tea_runtime.llama.engine import llama

        (n_ctx, actual), self._context = self._context, None
        use = self.plan.memory.use
        whole = n_ctx == self.plan.settings.n_ctx
        if whole and "kv_cache" in actual and abs(actual["kv_cache"] - use.kv_cache) <= 8 * _ROUNDING:
            actual["kv_cache"] = use.kv_cache
        now = resident()
        if now is not None and self._before is not None:
            # A host process may be large for reasons of its own: only the growth is the model's.
            actual["peak"] = min(now, now - self._before + use.overhead)
        record_load(self._store_dir, self.plan, engine=str(llama().__version__), actual=actual, n_ctx=n_ctx)


def resident() -> int | None:
    """Bytes of this process that are in memory now; None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize()
