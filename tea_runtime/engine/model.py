"""The models that are open in this process: weights and contexts, shared by all backends for one file and plan."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError
from tea_runtime.engine.embedder import Embedder, EmbedRequest
from tea_runtime.engine.scheduler import Scheduler, TextRequest
from tea_runtime.engine.thread import engine
from tea_runtime.errors import LlmError
from tea_runtime.llama.vocabulary import Vocabulary
from tea_runtime.llama.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tea_runtime.engine.growing_context import ContextPlan
    from tea_runtime.engine.prompt_cache import PromptCache
    from tea_runtime.engine.request import Request
    from tea_runtime.engine.thread import EngineThread
    from tea_runtime.llama.context import Context


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is opened: equal ones share a model."""

    path: Path
    plan: ContextPlan
    prompt_cache: PromptCache | None = None


class Model:
    """Weights, and the requests that are worked on with them. Made by `open_model`."""

    def __init__(
        self,
        thread: EngineThread,
        weights: Weights,
        spec: ModelSpec,
        opened: Callable[[Context], None] | None = None,
        used: Callable[[], None] | None = None,
    ) -> None:
        self._thread = thread
        self.spec = spec
        self.weights = weights
        self.vocabulary = Vocabulary(weights, limit=spec.plan.settings.n_ctx)
        self.texts = Scheduler(thread, weights, spec.plan, prompt_cache=spec.prompt_cache, opened=opened, used=used)
        self.vectors = Embedder(thread, weights, spec.plan)
        self.texts.memory.may_open = self._may_open_texts
        self.vectors.may_open = self._may_open_vectors
        self.owners: set[object] = set()

    # Any thread -------------------------------------------------------------------------------------------------------

    def submit(self, request: TextRequest | EmbedRequest) -> None:
        """Hand in a request."""
        self._thread.submit(request, lambda: self._add(request))

    def leave(self, owner: object) -> None:
        """Take a backend off; its requests end with an error. The last one frees the contexts."""
        self._thread.call(lambda _request: self._remove(owner))

    def leave_later(self, owner: object) -> None:
        """As `leave`, without waiting for it: for finalizers."""
        self._thread.post(lambda: self._remove(owner))

    # The engine's thread ----------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """There is a request to work on."""
        return self.texts.busy or self.vectors.busy

    def step(self) -> None:
        """A step for texts and one for vectors."""
        # Where the plan has no room for both contexts, the request that has waited longest gets it.
        text, vector = self.texts.oldest_waiting, self.vectors.oldest_waiting
        blocked = self.texts.busy and self.vectors.busy and not self._both_fit
        self.texts.hold = blocked and text is not None and vector is not None and vector < text
        self.vectors.hold = blocked and text is not None and vector is not None and text < vector
        for part in (self.texts, self.vectors):
            if part.busy:
                try:
                    part.step()
                except BaseException as error:  # noqa: BLE001 - it ends the requests of this part only
                    part.fail(error)

    def fail(self, error: BaseException) -> None:
        """End all requests with an error."""
        self.texts.fail(error)
        self.vectors.fail(error)

    def close(self, *, at_exit: bool = False) -> None:
        """Free the contexts, and at the end of the process what lies on a GPU: its driver wants that."""
        self.texts.memory.close()
        self.vectors.close()
        if at_exit and self.spec.plan.settings.n_gpu_layers:
            self.weights.close()

    @property
    def _both_fit(self) -> bool:
        return self.texts.memory.size + self.vectors.size <= self.texts.memory.n_ctx and bool(
            self.texts.memory.size and self.vectors.size
        )

    def _may_open_texts(self, tokens: int) -> bool:
        if tokens + self.vectors.size <= self.texts.memory.n_ctx:
            return True
        if self.vectors.running:
            return False
        self.vectors.close()
        return True

    def _may_open_vectors(self, tokens: int) -> bool:
        if tokens + self.texts.memory.size <= self.texts.memory.n_ctx:
            return True
        if self.texts.running:
            return False
        self.texts.memory.close()
        return True

    def _add(self, request: TextRequest | EmbedRequest) -> None:
        if request.owner not in self.owners:
            request.fail(LlmError(f"{self.weights.path.name}: the backend is closed"))
        elif isinstance(request, EmbedRequest):
            self.vectors.add(request)
        else:
            self.texts.add(request)

    def _remove(self, owner: object) -> None:
        if owner not in self.owners:
            return
        self.owners.discard(owner)
        error = LlmError(f"{self.weights.path.name}: the backend was closed")
        self.texts.fail(error, owner)
        self.vectors.fail(error, owner)
        if not self.owners:
            self.close()
            self._thread.workers.remove(self)
            # Without this they would refer to each other, and the weights would stay until the garbage is collected.
            self.texts.memory.may_open = self.vectors.may_open = _closed


def _closed(_tokens: int) -> bool:
    return False


# Weights that are loaded, for as long as something refers to them.
_weights: weakref.WeakValueDictionary[tuple[Any, ...], Weights] = weakref.WeakValueDictionary()


def open_model(
    spec: ModelSpec,
    owner: object,
    *,
    opened: Callable[[Context], None] | None = None,
    used: Callable[[], None] | None = None,
) -> Model:
    """Load a model, or share the one that this process has open for the same file and plan."""
    if "\0" in str(spec.path):
        raise UsageError(f"model path {str(spec.path)!r}: a path can't hold a NUL character")
    real = spec.path.resolve()
    stat = real.stat()
    chosen = spec.plan.settings
    how = (chosen.n_gpu_layers, chosen.use_mmap, chosen.use_mlock)
    key = (os.getpid(), str(real), stat.st_size, stat.st_mtime_ns, *how)
    thread = engine()

    def load(request: Request[Model]) -> Model:
        for worker in thread.workers:
            if isinstance(worker, Model) and worker.spec == spec and worker.weights is _weights.get(key):
                worker.owners.add(owner)
                return worker
        weights = _weights.get(key)
        if weights is None:
            weights = Weights(spec.path, chosen, cancelled=lambda: request.cancelled, free=thread.post)
            _weights[key] = weights
        model = Model(thread, weights, spec, opened, used)
        model.owners.add(owner)
        thread.workers.append(model)
        return model

    return thread.call(load)


def loaded() -> list[tuple[Path, int]]:
    """The files whose weights this process uses, each with the number of its backends."""
    users: dict[Path, int] = {}

    def count(_request: Request[None]) -> None:
        for worker in thread.workers:
            if isinstance(worker, Model):
                users[worker.spec.path] = users.get(worker.spec.path, 0) + len(worker.owners)

    thread = engine()
    thread.call(count)
    return list(users.items())
