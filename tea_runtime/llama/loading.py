"""What happens before weights are loaded: the file is found, its header judged, its profile and plan made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tea_models.caller import Caller
from tea_models.errors import MissingFileError, UsageError
from tea_models.settings import Settings
from tea_runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from tea_models.plan.types import RunPlan
    from tea_models.profile.facts import ModelProfile


def default_settings() -> Settings:
    """The settings of this process: its environment and working directory."""
    return Settings.resolve(os.environ, cwd=Path.cwd())


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


def check_text(profile: ModelProfile, path: Path) -> None:
    """Check that a file is a model that can write text."""
    from tea_models.profile.kind import why_no_chat

    reason = why_no_chat(profile.kind.value)
    if reason is not None:
        hint = "`tea-models inspect` shows what a file is, `tea-models list` what else there is"
        raise UnsupportedError(f"{path.name}: {reason}", hint=hint)


def check_vectors(profile: ModelProfile, path: Path) -> None:
    """Check that a file is a model that can make embeddings; every one that can write text is."""
    if profile.kind.value != "embedding":
        check_text(profile, path)


def describe(path: Path, plan: RunPlan) -> str:
    """One line that says how a model was loaded, and why so."""
    chosen, memory = plan.settings, plan.memory
    why = {decision.setting: decision.source for decision in plan.decisions}
    parts = [
        f"n_ctx {chosen.n_ctx:,} ({why.get('n_ctx', 'default')})",
        f"{chosen.n_threads} threads ({why.get('n_threads', 'default')})",
        f"{chosen.n_gpu_layers} GPU layers ({why.get('n_gpu_layers', 'default')})",
        f"KV {chosen.type_k}/{chosen.type_v}",
        f"memory {memory.use.total / 2**20:,.0f} of {memory.budget / 2**20:,.0f} MiB ({memory.use.method})",
    ]
    return f"loaded {path.name}: " + ", ".join(parts)
