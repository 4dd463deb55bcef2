"""`create_llm_backend` and `BackendPool`: settings → the backend that can be used, with the choice and its reasons."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from tea_models.errors import DoesNotFitError, IntegrityError, LockError, TeaModelsError, UnknownModelError, UsageError
from tea_models.plan.together import SharedPlan, plan_together
from tea_models.requirements import NodeModel
from tea_models.settings import Settings
from tea_runtime.api.backend import API_SETTINGS, api_of, api_problem
from tea_runtime.cassette.backend import CassetteBackend, asked_model, cassette_of
from tea_runtime.errors import BackendUnavailableError, MissingExtraError
from tea_runtime.llama.engine import llama
from tea_runtime.llm_settings import LlmSettings
from tea_runtime.resolve import COMMAND_LINE, Search, is_model_name, search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tea_runtime.backend import LlmBackend

logger = logging.getLogger("tea_runtime")

MadeT = TypeVar("MadeT")
# What decides which file is loaded, and how.
_NAMES = ("profile", "model_path", "model", "auto_pull")
_LOAD = ("n_ctx", "n_threads", "n_gpu_layers", "chat_format", "kv_type", "memory", "prompt_cache")


def create_llm_backend(
    settings: Mapping[str, Any] | LlmSettings | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    gguf: str | None = None,
    **overrides: Any,
) -> LlmBackend:
    """Make the backend that `settings.llm` asks for.

    `local` and `auto` load a local model (see `resolve_model_path` for which). If that can't be done (no
    llama-cpp-python, no file, a failed load), that is an error, unless an API may answer: under `auto` where `fallback`
    is not false, under `local` where `fallback` is true. Then the reason is logged as a warning, and each result
    carries it. `api` uses the API alone.

    Args:
        settings: The `settings.llm` block, or a whole `settings` block; None for the defaults.
        environ: The process's own by default.
        gguf: A model that goes before all others, as with `--gguf`; it means `backend: local`, unless an override says
            otherwise.
        **overrides: Keys of `settings.llm` that replace those of the block; None leaves one as it is.

    Raises:
        ConfigError: The block has an unknown key or a wrong value.
        UnknownModelError: `model` is no name of the registry, and no API is there whose model it could be.
        BackendUnavailableError: Neither a local model nor an API can be used; says why for each.
        MissingExtraError: The one backend that may be used needs a package that is not installed.
        TeaModelsError: The local model can't be used, and no API may answer in its place.
    """
    block = LlmSettings.parse(settings).overridden(**overrides)
    if gguf and overrides.get("backend") is None:
        block = block.overridden(backend="local")
    return BackendPool(environ=environ, gguf=gguf).get(block)


class BackendPool:
    """The backends of one engine, made when first needed and shared by all threads; a local model is loaded once."""

    def __init__(self, *, environ: Mapping[str, str] | None = None, gguf: str | None = None) -> None:
        self.environ = os.environ if environ is None else environ
        self.gguf = gguf
        self._cassette = cassette_of(self.environ)
        self._lock = threading.Lock()
        self._unused = threading.Condition(self._lock)  # a backend has fewer users
        self._made: dict[tuple[Any, ...], Any] = {}  # the longest unused first
        self._locks: dict[tuple[Any, ...], threading.Lock] = {}
        self._users: Counter[int] = Counter()  # of backends, by their id
        self._mine = threading.local()  # what this thread uses
        self._loading: dict[tuple[Any, ...], int] = {}  # what is being loaded, and the bytes that it will take
        #: The nodes of a workflow (name, settings), whose models are planned together when the first is loaded.
        self.nodes: Sequence[tuple[str, LlmSettings]] = ()

    def get(self, block: LlmSettings) -> LlmBackend:
        """The backend for these settings; raises as `create_llm_backend` does."""
        cassette = self._cassette
        if cassette is None:
            return self._open(block)
        model = asked_model(block, self.environ, self.gguf)
        key = ("cassette", *_values(block, tuple(LlmSettings.model_fields)))
        return self._once(key, lambda: CassetteBackend(cassette, model, lambda: self._open(block)))

    @contextmanager
    def use(self, block: LlmSettings) -> Iterator[LlmBackend]:
        """As `get`; while a backend is used it is not closed for another one."""
        while True:
            backend = self.get(block)
            with self._lock:
                key = next((key for key, made in self._made.items() if made is backend), None)
                if key is not None:  # it was not closed meanwhile
                    self._made[key] = self._made.pop(key)
                    self._users[id(backend)] += 1
                    break
        mine = self._mine.__dict__
        mine["count"] = mine.get("count", 0) + 1
        try:
            yield backend
        finally:
            mine["count"] -= 1
            with self._unused:
                self._users[id(backend)] -= 1
                self._unused.notify_all()

    def close(self) -> None:
        """Close every backend; what is needed again is opened again."""
        with self._lock:
            made, self._made = list(self._made.values()), {}
        for one in made:
            if hasattr(one, "close"):
                one.close()

    def _open(self, block: LlmSettings) -> LlmBackend:
        if block.backend == "api":
            return self._once(("api", *_values(block, API_SETTINGS)), lambda: self._api(block))
        in_place = ("fallback", *_values(block, ("fallback", *_NAMES, *_LOAD, *API_SETTINGS)))
        made: LlmBackend | None = self._made.get(in_place)
        if made is not None:
            return made
        try:
            found = self._once(("found", *_values(block, _NAMES)), lambda: self._find(block))
            key = ("local", found.path, *_values(block, _LOAD))
            with self._room(key, block) as share:
                return self._once(key, lambda: self._load(block, found, share))
        except (UsageError, UnknownModelError, LockError):
            raise
        except (TeaModelsError, OSError, MemoryError) as error:
            reason = error
        return self._once(in_place, lambda: self._fall_back(block, reason))

    def _once(self, key: tuple[Any, ...], make: Callable[[], MadeT]) -> MadeT:
        """What was made for a key; threads that ask for the same wait for the first."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            made = self._made.get(key)
            if made is None:
                made = make()
                with self._lock:  # others look through it meanwhile
                    self._made[key] = made
            return cast("MadeT", made)

    def _find(self, block: LlmSettings) -> Search:
        llama()  # without the package there is no need to look for files, least of all to download one
        result = search(block, gguf=self.gguf, environ=self.environ)
        if result.path is None and result.absent is not None and block.auto_pull:
            from tea_models import pull

            logger.info("%s is not in the store: pulling it (settings.llm.auto_pull)", result.absent)
            pull([result.absent], settings=Settings.resolve(self.environ, cwd=Path.cwd()))
            result = search(block, gguf=self.gguf, environ=self.environ)
        if result.path is None:
            raise result.error()
        return result

    def _load(self, block: LlmSettings, found: Search, share: int | None) -> LlmBackend:
        from tea_runtime.local import LocalLlmBackend

        assert found.path is not None
        given: dict[str, Any] = {key: getattr(block, key) for key in (*_LOAD, "embedding")}
        given["memory"] = share or block.memory
        logger.info("loading %s", found.path.name)
        settings = Settings.resolve(self.environ, cwd=Path.cwd())
        backend = LocalLlmBackend(found.path, profile=found.profile, settings=settings, **given)
        by = "on" if found.source == COMMAND_LINE else "by"
        logger.info("backend: local (%s), named %s %s", found.path.name, by, found.source)
        return backend

    def _plan_nodes(self) -> SharedPlan | Literal[False]:
        """The plan for the models of all nodes that are here; False for a single one, and where it can't be made."""
        nodes = []
        for node, block in self.nodes if self._cassette is None else ():
            with suppress(TeaModelsError, OSError):  # the node says what is wrong when it runs
                path = self._find(block.model_copy(update={"auto_pull": False})).path
                nodes.append(NodeModel(node, str(path), block.model_dump(exclude_unset=True)))
        if len({node.reference for node in nodes}) < 2:
            return False
        try:
            shared = plan_together(nodes, Settings.resolve(self.environ, cwd=Path.cwd()))
        except (TeaModelsError, OSError):
            return False
        logger.info("%d models: %s", len(shared.models), shared.reason)
        return shared

    @contextmanager
    def _room(self, key: tuple[Any, ...], block: LlmSettings) -> Iterator[int | None]:
        """Make room for a model while it is loaded, and give its share: others are closed, or waited for."""
        shared = self._once(("shared",), self._plan_nodes) if key not in self._made else False
        model = shared.model(str(key[1]), block.model_dump(exclude_unset=True)) if shared else None
        if not shared or model is None:
            yield None
            return
        with self._unused:
            mine = self._wait_for_room(key, model.own, shared.room)
            if mine:
                self._loading[key] = model.own
        try:
            yield model.share
        finally:
            if mine:
                with self._unused:
                    del self._loading[key]
                    self._unused.notify_all()

    def _wait_for_room(self, key: tuple[Any, ...], own: int, room: int) -> bool:
        """Wait for room; False where another thread brings the model meanwhile."""
        while key not in self._made and key not in self._loading:
            loaded = {other: made for other, made in self._made.items() if other[0] == "local"}
            if own + sum(self._loading.values()) + sum(map(own_memory, loaded.values())) <= room:
                return True
            idle = [other for other, made in loaded.items() if not self._users[id(made)]]
            if idle:
                logger.info("closing %s, to make room", Path(idle[0][1]).name)
                self._made.pop(idle[0]).close()
            elif not (loaded or self._loading) or self._mine.__dict__.get("count"):
                return True  # nothing will go: this thread itself uses a model, or there is none
            else:
                self._unused.wait()
        return False

    def _api(self, block: LlmSettings) -> LlmBackend:
        api = api_of(block, self.environ)
        problem = api.unavailable_reason()
        if problem:
            raise BackendUnavailableError(
                f"the API can't be used: {problem}",
                hint="set OPENAI_API_KEY, or settings.llm.api_base for another server",
            )
        logger.info("backend: api (%s), because settings.llm.backend says so", api.model)
        return api

    def _fall_back(self, block: LlmSettings, error: Exception) -> LlmBackend:
        if not block.may_fall_back or self.gguf:
            raise error
        reason = error.message if isinstance(error, TeaModelsError) else str(error) or type(error).__name__
        logger.warning("no local model can be used: %s", reason)
        missing = api_problem(block, self.environ)
        if missing:
            if isinstance(error, MissingExtraError | IntegrityError | DoesNotFitError):
                # Without an API to go to, this error says best what to do (and the first is an ImportError).
                raise error
            raise BackendUnavailableError(
                f"no backend can be used. local: {reason}. api: {missing}", hint=getattr(error, "hint", "")
            ) from error
        if block.model is not None and not block.api_base and is_model_name(block.model, self.environ):
            # The name or path of a local model means nothing to a public API.
            block = block.model_copy(update={"model": None})
        api = api_of(block, self.environ, reason=reason)
        logger.warning("backend: api (%s), in place of a local model: what is asked leaves this machine", api.model)
        return api


def own_memory(backend: LlmBackend) -> int:
    """Bytes that a backend takes beside the process; 0 where it has no plan."""
    plan = getattr(backend, "plan", None)
    return plan.memory.total - plan.memory.use.overhead if plan is not None else 0


def _values(block: LlmSettings, keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(block, key) for key in keys)
