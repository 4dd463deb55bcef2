"""The models that are open in this process: weights and contexts, shared by all backends for one file and plan."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError
from tea_runtime.engine.embedder import Embedder, EmbedRequest
from tea_runtime.engine.scheduler import Scheduler, TextRequest
from tea_runtime.engine.thread import EngineThread, Request, engine
from tea_runtime.errors import LlmError
from tea_runtime.llama.weights import Vocabulary, Weights

if TYPE_CHECKING:
    from tea_runtime.engine.growing_context import ModelSpec
    from tea_runtime.llama.loading import LoadRecorder


class Model:
    """Weights, and requests on them. `submit`, `leave`, `leave_later` are for any thread, the rest for the engine's."""

    def __init__(
        self,
        thread: EngineThread,
        key: tuple[Any, ...],
        weights: Weights,
        spec: ModelSpec,
        recorder: LoadRecorder | None,
    ) -> None:
        self._thread, self.spec, self.weights = thread, spec, weights
        #: The file, as it was, and how it was loaded: models with the same share their weights.
        self.key = key
        self.vocabulary = Vocabulary(weights, limit=spec.settings.n_ctx)
        self.texts = Scheduler(thread, weights, spec, recorder)
        self.vectors = Embedder(thread, weights, spec)
        self.texts.memory.may_open = lambda tokens: self._may_open(tokens, self.vectors)
        self.vectors.may_open = lambda tokens: self._may_open(tokens, self.texts)
        # The backends that use it, each by an object of its own.
        self.owners: set[object] = set()

    def submit(self, request: TextRequest | EmbedRequest) -> None:
        self._thread.submit(request, lambda: self._add(request))

    def leave(self, owner: object) -> None:
        """Take a backend off; its requests end with an error. The last one frees the contexts."""
        self._thread.call(lambda _request: self._remove(owner))

    def leave_later(self, owner: object) -> None:
        """As `leave`, without waiting for it: for finalizers."""
        self._thread.post(lambda: self._remove(owner))

    @property
    def busy(self) -> bool:
        return self.texts.busy or self.vectors.busy

    def step(self) -> None:
        texts, vectors = self.texts, self.vectors
        # Where the plan has no room for both contexts, the request that has waited longest gets it.
        both = texts.size and vectors.size and texts.size + vectors.size <= self.spec.settings.n_ctx
        blocked = texts.busy and vectors.busy and not both
        text, vector = (part.waiting[0].number if part.waiting else math.inf for part in (texts, vectors))
        texts.hold, vectors.hold = blocked and vector < text, blocked and text < vector
        for part in (texts, vectors):
            if part.busy:
                try:
                    part.step()
                except BaseException as error:  # noqa: BLE001 - it ends the requests of this part only
                    part.fail(error)

    def close(self, *, at_exit: bool = False) -> None:
        """Free the contexts, and at the end of the process what lies on a GPU: its driver wants that."""
        self.texts.close()
        self.vectors.close()
        if at_exit and self.spec.settings.n_gpu_layers:
            self.weights.close()

    def _may_open(self, tokens: int, other: Scheduler | Embedder) -> bool:
        """Whether a context fits beside the other part's, which is closed for it if nothing runs there."""
        if tokens + other.size > self.spec.settings.n_ctx:
            if other.running:
                return False
            other.close()
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
            self._thread.models.remove(self)
            # Without this they would refer to each other, and the weights would stay until the garbage is collected.
            self.texts.memory.may_open = self.vectors.may_open = lambda _tokens: False


def open_model(spec: ModelSpec, owner: object, recorder: LoadRecorder | None = None) -> Model:
    """Load a model, or share the one that is open for the same file and plan; `owner` stands for the backend."""
    if "\0" in str(spec.path):
        raise UsageError(f"model path {str(spec.path)!r}: a path can't hold a NUL character")
    real, settings = spec.path.resolve(), spec.settings
    stat = real.stat()
    key = (real, stat.st_size, stat.st_mtime_ns, settings.n_gpu_layers, settings.use_mmap)
    thread = engine()

    def load(request: Request[Model]) -> Model:
        same: list[Model] = [model for model in thread.models if model.key == key]
        model = next((model for model in same if model.spec == spec), None)
        if model is None:
            weights = same[0].weights if same else None
            if weights is None:
                weights = Weights(spec.path, settings, cancelled=lambda: request.cancelled, free=thread.post)
            model = Model(thread, key, weights, spec, recorder)
            thread.models.append(model)
        model.owners.add(owner)
        return model

    return thread.call(load)
