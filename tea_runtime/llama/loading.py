"""What happens before weights are loaded: the file is found, its header judged, its profile and plan made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tea_models.caller import Caller
from tea_models.errors import IntegrityError, MissingFileError, UsageError
from tea_models.settings import Settings
from tea_runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from tea_models.plan import RunPlan
    from tea_models.profile import ModelProfile


def default_settings() -> Settings:
    """The settings of this process: its environment and working directory."""
    return Settings.resolve(os.environ, cwd=Path.cwd())


def find_file(model: str | os.PathLike[str], settings: Settings) -> Path:
    """The file (of shards, the first) that a path or a reference means. Nothing is downloaded.

    Raises:
        MissingFileError: No such file, or the model is not in the store; the hint says how to pull it.
        UsageError: It is no path and no reference.
    """
    if not str(model):
        raise UsageError("model_path: it is empty")
    path = Path(model).expanduser()
    if not isinstance(model, str) or path.exists():
        if not path.exists():
            raise MissingFileError(f"{path}: no such file")
        return path
    from tea_models.sources.locate import locate

    found = locate(model, Caller(settings), remote=False).paths[0]
    if not found.exists():
        raise MissingFileError(f"{found}: no such file")
    return found


def examine(path: Path, settings: Settings) -> ModelProfile:
    """The profile of a file, after its header was checked: what would kill llama.cpp's loader never reaches it.

    Raises:
        MalformedGGUFError: A file is not GGUF or breaks the specification.
        IntegrityError: It reads well, but llama.cpp can't load it; says why.
        MissingFileError: A shard is missing.
    """
    from tea_models.gguf import check_loadable, check_tokenizable
    from tea_models.profile import profile_from_headers
    from tea_models.profile.model_files import open_model
    from tea_models.profile.stored import stored_profile

    with open_model(path, settings=settings) as model:
        for source, header in zip(model.sources, model.headers, strict=True):
            problems = check_loadable(header) or check_tokenizable(header)
            if problems:
                raise IntegrityError(
                    f"{source.name}: llama.cpp can't run it: {problems[0]}", hint="get the file again, or another one"
                )
        recorded = stored_profile(path, Caller(settings))
        if recorded is not None and recorded.files[0].size == model.files[0].size:
            return recorded
        return profile_from_headers(model.headers, model.files, entry=model.entry)


def check_text(profile: ModelProfile, path: Path) -> None:
    """Check that a file is a model that can write text.

    Raises:
        UnsupportedError: It is something else; says what.
    """
    from tea_models.profile.kind import why_no_chat

    reason = why_no_chat(profile.kind.value)
    if reason is not None:
        hint = "`tea-models inspect` shows what a file is, `tea-models list` what else there is"
        raise UnsupportedError(f"{path.name}: {reason}", hint=hint)


def check_vectors(profile: ModelProfile, path: Path) -> None:
    """Check that a file is a model that can make embeddings; every one that can write text is.

    Raises:
        UnsupportedError: It is something else; says what.
    """
    if profile.kind.value != "embedding":
        check_text(profile, path)


def make_plan(path: Path, settings: Settings, **user: Any) -> RunPlan:
    """The settings for this machine, with the user's user (see `tea_models.resolve_plan`).

    Raises:
        IntegrityError: The engine dies of the file: seen in another process, not in this one.
    """
    from tea_models import resolve_plan

    plan = resolve_plan(path, settings=settings, **{key: wish for key, wish in user.items() if wish is not None})
    if plan.memory.use.method != "measured":  # the dry run that measures loads the model too
        from tea_models.engine.dry_load import DryLoader

        with DryLoader(settings) as loader:
            refusal = loader.refusal(path)
        if refusal is not None and refusal.died:
            raise IntegrityError(f"{path}: {refusal.reason}", hint="get the file again, or another one")
    return plan


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
