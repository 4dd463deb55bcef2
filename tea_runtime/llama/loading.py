"""What happens around a load: the file is found and its header judged, and what the load really took is recorded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tea_models.caller import Caller
from tea_models.errors import MissingFileError, UsageError
from tea_models.machine.cgroups import read_text
from tea_runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from tea_models.plan.types import RunPlan
    from tea_models.profile.facts import ModelProfile
    from tea_models.settings import Settings
    from tea_runtime.llama.context import Context


def find_file(model: str | os.PathLike[str], settings: Settings) -> Path:
    """The file (of shards, the first) that a path or a reference means. Nothing is downloaded."""
    if not str(model):
        raise UsageError("model_path: it is empty")
    path = Path(model).expanduser()
    if isinstance(model, str) and not path.exists():
        from tea_models.sources.locate import locate

        path = locate(model, Caller(settings), remote=False).paths[0]
    if not path.exists():
        raise MissingFileError(f"{path}: no such file")
    return path


def check_text(profile: ModelProfile, path: Path, *, vectors: bool = False) -> None:
    """Check that a file is a model that can write text, or (`vectors`) one for embeddings at least."""
    from tea_models.profile.kind import why_no_chat

    reason = None if vectors and profile.kind.value == "embedding" else why_no_chat(profile.kind.value)
    if reason is not None:
        hint = "`tea-models inspect` shows what a file is, `tea-models list` what else there is"
        raise UnsupportedError(f"{path.name}: {reason}", hint=hint)


def describe(path: Path, plan: RunPlan) -> str:
    """One line that says how a model was loaded, and why so."""
    chosen, use = plan.settings, plan.memory.use
    why = {decision.setting: decision.source for decision in plan.decisions}
    texts = {"n_ctx": f"n_ctx {chosen.n_ctx:,}", "n_threads": f"{chosen.n_threads} threads"}
    texts["n_gpu_layers"] = f"{chosen.n_gpu_layers} GPU layers"
    settings = ", ".join(f"{text} ({why.get(name, 'default')})" for name, text in texts.items())
    memory = f"memory {use.total / 2**20:,.0f} of {plan.memory.budget / 2**20:,.0f} MiB ({use.method})"
    return f"loaded {path.name}: {settings}, KV {chosen.type_k}/{chosen.type_v}, {memory}"


class LoadRecorder:
    """Records what contexts take, for `tea-models plan` and `doctor`, once their buffers have been touched."""

    def __init__(self, store_dir: Path) -> None:
        self._store_dir = store_dir
        self._before = resident()
        self._recorded: Context | None = None
        self.plan: RunPlan | None = None

    def used(self, context: Context) -> None:
        """Write what a context took in which something was evaluated, once."""
        if context is self._recorded or self.plan is None:
            return
        self._recorded = context
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
    pages = read_text(Path("/proc/self/statm")).split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else None
