"""Texts to vectors, on the same weights as the chat, a step at a time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tea_runtime.engine.growing_context import ModelSpec, enlarged
from tea_runtime.engine.thread import EngineThread, Request
from tea_runtime.errors import ContextOverflowError, GenerationError
from tea_runtime.llama.context import AbortedError, Context
from tea_runtime.llama.engine import llama

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tea_runtime.llama.weights import Weights

_START = 1024
_TOGETHER = 16
# llama.cpp computes the logits of every token of an embedding context, wanted or not: 4 bytes for each word of the
# vocabulary. Smaller steps keep that buffer small, and are faster for it.
_LOGITS_BUDGET = 64 * 1024 * 1024


class EmbedRequest(Request[list[list[float]]]):
    """A request for vectors, or for the scores of a reranker."""

    def __init__(self, texts: Sequence[list[int]], owner: object) -> None:
        super().__init__(owner=owner)
        self.texts = texts
        self.vectors: dict[int, list[float]] = {}


@dataclass(slots=True)
class _Text:
    request: EmbedRequest
    index: int
    tokens: list[int]
    evaluated: int = 0
    total: Any = None

    @property
    def number(self) -> int:
        return self.request.number


class Embedder:
    """Makes embeddings, L2-normalised, and the scores of rerankers. Only for the engine's thread, except `check`."""

    def __init__(self, engine: EngineThread, weights: Weights, spec: ModelSpec) -> None:
        self._engine, self._weights = engine, weights
        self._settings, self._pooling = spec.settings, spec.pooling
        # Whether the model sees only what is before a token; the engine says so of a context, not of a file.
        self._causal = True
        self._context: Context | None = None
        self.waiting: deque[_Text] = deque()
        #: The texts in the context, each in the sequence of its place.
        self.running: list[_Text] = []
        self.may_open: Callable[[int], bool] = lambda _size: True
        # No text is begun, because somebody else waits for the room.
        self.hold = False

    @property
    def size(self) -> int:
        """The context that is open now, in tokens; 0 for none."""
        return self._context.n_ctx if self._context else 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def check(self, tokens: Sequence[int]) -> None:
        if len(tokens) > self._settings.n_ctx:
            hint = "split the text, or give the model a larger n_ctx"
            raise ContextOverflowError(
                prompt_tokens=len(tokens), n_ctx=self._settings.n_ctx, reserved=0, what="text", hint=hint
            )

    def add(self, request: EmbedRequest) -> None:
        self.waiting.extend(_Text(request, index, tokens) for index, tokens in enumerate(request.texts))
        if not request.texts:
            request.finish([])

    def step(self) -> None:
        if all(text.request.cancelled for text in self.running):
            self._end_group()
            self._begin_group()
        context = self._context
        if context is None or not self.running:
            return
        self._engine.set_step({text.request for text in self.running})
        try:
            self._evaluate(context)
        except AbortedError:
            self._end_group()
            return
        finally:
            self._engine.set_step()
        if all(text.evaluated == len(text.tokens) for text in self.running):
            self._deliver(context)

    def _begin_group(self) -> None:
        """Take in as many texts as fit into a context together, if there is room for it now."""
        group: list[_Text] = []
        total = 0
        while self.waiting and not self.hold and len(group) < _TOGETHER:
            text = self.waiting[0]
            if group and total + len(text.tokens) > min(_START, self._settings.n_ctx):
                break
            self.waiting.popleft()
            if not text.request.cancelled:
                group.append(text)
                total += len(text.tokens)
        if self._ensure(total):
            self.running = group
        else:
            self.waiting.extendleft(reversed(group))

    def _evaluate(self, context: Context) -> None:
        added: list[tuple[int, _Text, int]] = []
        for sequence, text in enumerate(self.running):
            part = text.tokens[text.evaluated : text.evaluated + context.batch.room]
            if part:
                last = context.batch.add(sequence, part, text.evaluated, output=True, every=True)
                added.append((last - len(part) + 1, text, len(part)))
        context.evaluate()
        for place, text, count in added:
            # llama.cpp's own mean covers only the last step, so a long text would need one step of its whole length.
            if self._causal and self._pooling != "rank":
                self._pool(context, text, place, count)
            text.evaluated += count

    def _pool(self, context: Context, text: _Text, place: int, count: int) -> None:
        import numpy as np

        if self._pooling == "mean":
            total = np.zeros(self._weights.n_embd, np.float64) if text.total is None else text.total
            text.total = total + sum(context.embedding(place + offset) for offset in range(count))
        elif self._pooling == "last":
            text.total = context.embedding(place + count - 1).astype(np.float64)
        elif text.total is None:
            text.total = context.embedding(place).astype(np.float64)

    def _deliver(self, context: Context) -> None:
        ended = set()
        for sequence, text in enumerate(self.running):
            try:
                if self._pooling == "rank":
                    vector = context.pooled(sequence, max(self._weights.n_cls_out, 1)).tolist()
                else:
                    if text.total is None:
                        text.total = context.pooled(sequence, self._weights.n_embd)
                    vector = _unit(text.total)
            except GenerationError as error:
                text.request.fail(error)
                text.request.cancelled = True
                continue
            text.request.vectors[text.index] = vector
            ended.add(text.request)
        self._end_group()
        for request in ended:
            if len(request.vectors) == len(request.texts):
                request.finish([request.vectors[index] for index in range(len(request.texts))])

    def _end_group(self) -> None:
        self.running = []
        if self._context is not None:
            self._context.clear()

    def _ensure(self, tokens: int) -> bool:
        if self.size >= tokens:
            return True
        size = enlarged(_START, tokens, self._settings.n_ctx)
        if not self.may_open(size):
            return False
        self.close()
        self._context = self._open(size)
        if self._causal and not self._context.causal:
            self._causal = False
            self._context.close()
            self._context = self._open(size)
        return True

    def _open(self, n_ctx: int) -> Context:
        engine = llama()
        if not self._causal or self._pooling == "rank":  # these see the whole text at once
            step, pooling = n_ctx, getattr(engine, f"LLAMA_POOLING_TYPE_{self._pooling.upper()}")
        else:
            step, pooling = 128, engine.LLAMA_POOLING_TYPE_NONE
            while step > 16 and step * self._weights.n_vocab * 4 > _LOGITS_BUDGET:
                step //= 2
        settings = replace(self._settings, n_ctx=n_ctx, n_batch=step, n_ubatch=step, n_seq_max=_TOGETHER)
        return Context(self._weights, settings, self._engine.abort, pooling=pooling)

    def fail(self, error: BaseException, owner: object = None) -> None:
        """End all requests, or those of one backend, with an error."""
        for text in [*self.waiting, *self.running]:
            if owner in (None, text.request.owner):
                text.request.cancelled = True
                text.request.fail(error)
        if owner is None:
            self.waiting.clear()
            self.running = []
            self.close()

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None


def _unit(vector: Any) -> list[float]:
    import numpy as np

    vector = vector.astype(np.float64)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length):
        raise GenerationError("the model gave an embedding that is not a number: its weights are damaged")
    values: list[float] = (vector / length if length else vector).tolist()
    return values
