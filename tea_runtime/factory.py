"""`create_llm_backend`: settings → the backend that can be used, with the choice and its reasons in the log."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tea_models.errors import (
    ConfigError,
    DoesNotFitError,
    IntegrityError,
    MissingFileError,
    TeaModelsError,
    UnknownModelError,
    UsageError,
)
from tea_models.settings import Settings
from tea_runtime.cassette.asked import asked_model, cassette_of
from tea_runtime.cassette.backend import CassetteBackend
from tea_runtime.errors import BackendUnavailableError, MissingExtraError
from tea_runtime.llm_settings import LlmSettings
from tea_runtime.resolve import Search, search

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tea_runtime.api.backend import ApiLlmBackend
    from tea_runtime.backend import LlmBackend
    from tea_runtime.cassette.entries import Cassette
    from tea_runtime.local import LocalLlmBackend

logger = logging.getLogger("tea_runtime")


def create_llm_backend(
    settings: Mapping[str, Any] | LlmSettings | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    gguf: str | None = None,
    cassette: Cassette | None = None,
    **overrides: Any,
) -> LlmBackend:
    """Make the backend that `settings.llm` asks for.

    `local` and `auto` load a local model (see `resolve_model_path` for which). If that can't be done (no
    llama-cpp-python, no file, a failed load), the reason is logged as a warning and the API takes over, provided that
    one is configured and `fallback` is not false; each result then carries the reason. `api` uses the API alone.

    Args:
        settings: The `settings.llm` block, or a whole `settings` block; None for the defaults.
        environ: The process's own by default.
        gguf: A model that goes before all others, as with `--gguf`.
        cassette: Answers are replayed from it or recorded into it; by default what `TEA_CASSETTE` names.
        **overrides: Keys of `settings.llm` that replace those of the block; None leaves one as it is.

    Raises:
        ConfigError: The block has an unknown key or a wrong value.
        UnknownModelError: `model` is no name of the registry, and no API is there whose model it could be.
        BackendUnavailableError: Neither a local model nor an API can be used; says why for each.
        MissingExtraError: The one backend that may be used needs a package that is not installed.
        TeaModelsError: `fallback` is false, and loading failed.
    """
    environ = os.environ if environ is None else environ
    block = LlmSettings.parse(settings).overridden(**overrides)
    cassette = cassette or cassette_of(environ)
    if cassette is not None:
        return CassetteBackend(cassette, asked_model(block, environ, gguf), lambda: _open(block, environ, gguf))
    return _open(block, environ, gguf)


def _open(block: LlmSettings, environ: Mapping[str, str], gguf: str | None) -> LlmBackend:
    if block.backend == "api":
        api = _api(block.expanded(environ), environ)
        logger.info("backend: api (%s), because settings.llm.backend says so", api.model)
        return api
    try:
        local = _local(block, environ, gguf)
    except (ConfigError, UsageError, UnknownModelError):
        raise
    except (TeaModelsError, OSError, MemoryError) as error:
        return _fall_back(block.expanded(environ), environ, error)
    return local


def _local(block: LlmSettings, environ: Mapping[str, str], gguf: str | None) -> LocalLlmBackend:
    # The package comes first: without it there is no need to look for files, least of all to download one.
    from tea_runtime.llama.engine import llama

    llama()
    from tea_runtime.local import LocalLlmBackend

    world = Settings.resolve(environ, cwd=Path.cwd())
    result = search(block, gguf=gguf, environ=environ, pull=block.auto_pull)
    if result.found is None and result.absent is not None:
        result = _pull(result.absent, world, block, environ, gguf)
    found = result.found
    if found is None:
        raise MissingFileError(
            "no local model: " + ("; ".join(result.skipped) or "none is named and the store is empty"),
            hint="tea-models pull smollm2-135m, or name one with settings.llm.model, TEA_MODEL_PATH or --gguf",
        )
    backend = LocalLlmBackend(
        found.path,
        n_ctx=block.n_ctx,
        n_threads=block.n_threads,
        n_gpu_layers=block.n_gpu_layers,
        chat_format=block.chat_format,
        embedding=block.embedding,
        kv_type=block.kv_type,
        profile=found.profile,
        settings=world,
    )
    logger.info("backend: local (%s), named by %s", found.path.name, found.source)
    return backend


def _pull(reference: str, world: Settings, block: LlmSettings, environ: Mapping[str, str], gguf: str | None) -> Search:
    from tea_models import pull

    logger.info("%s is not in the store: pulling it (settings.llm.auto_pull)", reference)
    pull([reference], settings=world)
    return search(block, gguf=gguf, environ=environ)


def _fall_back(block: LlmSettings, environ: Mapping[str, str], error: Exception) -> LlmBackend:
    reason = error.message if isinstance(error, TeaModelsError) else str(error) or type(error).__name__
    if not block.fallback:
        raise error
    logger.warning("no local model can be used: %s", reason)
    from tea_runtime.api.fallback import FallbackApiBackend, api_problem

    missing = api_problem(block, environ)
    if missing:
        if isinstance(error, MissingExtraError | IntegrityError | DoesNotFitError):
            # As long as there is no API to go to, this error says best what to do (and the first is an ImportError).
            raise error
        raise BackendUnavailableError(
            f"no backend can be used. local: {reason}. api: {missing}", hint=getattr(error, "hint", "")
        ) from error
    api = FallbackApiBackend.from_settings(_without_local_model(block), environ=environ)
    assert isinstance(api, FallbackApiBackend)
    api.reason = reason
    logger.warning("backend: api (%s), in place of a local model: what is asked leaves this machine", api.model)
    return api


def _api(block: LlmSettings, environ: Mapping[str, str]) -> ApiLlmBackend:
    from tea_runtime.api.backend import ApiLlmBackend

    api = ApiLlmBackend.from_settings(block, environ=environ)
    problem = api.unavailable_reason()
    if problem:
        raise BackendUnavailableError(
            f"the API can't be used: {problem}", hint="set OPENAI_API_KEY, or settings.llm.api_base for another server"
        )
    return api


def _without_local_model(block: LlmSettings) -> LlmSettings:
    """The settings for an API: the name of a local model means nothing to a public one."""
    if block.model is None or block.api_base:
        return block
    from tea_models.refs import NameRef, parse_reference
    from tea_models.registry.entries import Registry

    try:
        reference = parse_reference(block.model)
        if isinstance(reference, NameRef):
            Registry.load(Settings.resolve({}, cwd=Path.cwd())).find(reference)
    except TeaModelsError:
        return block  # no name that we know: it may well be the API's
    return block.model_copy(update={"model": None})
