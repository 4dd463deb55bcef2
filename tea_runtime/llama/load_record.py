"""What a load really took, measured while it runs and kept for `tea-models plan` and `doctor` to compare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tea_models.plan.types import RunPlan
    from tea_runtime.llama.context import Context


class LoadRecorder:
    """Records each context that is opened, once it has been used: then its buffers have been touched."""

    def __init__(self, store_dir: Path) -> None:
        self._store_dir = store_dir
        self._before = resident()
        self._opened: Context | None = None
        self.plan: RunPlan | None = None

    def opened(self, context: Context) -> None:
        """Remember a context."""
        self._opened = context

    def used(self) -> None:
        """Write what the context took that was opened last."""
        context, self._opened = self._opened, None
        if context is None or self.plan is None:
            return
        from tea_models.plan.observed import record_load
        from tea_runtime.llama.engine import llama

        # The plan counts the logits of a whole batch; our contexts have room for those of the last tokens only.
        actual = {}
        if not context.weights.n_swa and not context.weights.recurrent:
            # The others need more for each sequence beside the first, which the plan does not count.
            actual["kv_cache"] = sum(context.buffers("KV"))
        now = resident()
        if now is not None and self._before is not None:
            # A host process may be large for reasons of its own: only the growth is the model's.
            actual["peak"] = min(now, now - self._before + self.plan.memory.use.overhead)
        engine = str(llama().__version__)
        record_load(self._store_dir, self.plan, engine=engine, actual=actual, n_ctx=context.n_ctx)


def resident() -> int | None:
    """Bytes of this process that are in memory now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
