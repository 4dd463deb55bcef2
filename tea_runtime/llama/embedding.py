"""Texts to vectors, on the same weights as the chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError
from tea_runtime.errors import ContextOverflowError, GenerationError
from tea_runtime.llama.context import Context, Item
from tea_runtime.llama.engine import llama

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tea_runtime.llama.context import ContextOptions
    from tea_runtime.llama.engine import Weights
    from tea_runtime.llama.session import Session
    from tea_runtime.llama.vocabulary import Vocabulary

_START = 1024
_TOGETHER = 8
# llama.cpp computes the logits of every token of an embedding context, wanted or not: 4 bytes for each word of the
# vocabulary. Smaller steps keep that buffer small, and are faster for it.
_LOGITS_BUDGET = 64 * 1024 * 1024


class Embedder:
    """Makes embeddings, L2-normalised. Only for the holder of the weights' engine_lock.

    Models that see only what is before a token are averaged here, in steps: llama.cpp's own mean pooling covers only
    the last step, so a long text would need one step of its whole length. Encoders (BERT and its kin) are pooled by
    llama.cpp.

    Args:
        weights: The model.
        vocabulary: Its vocabulary.
        options: How to open the context; its `n_ctx` is the largest that may be used.
        pooling: `mean`, `cls` or `last`; what the header says, or `mean`.

    Attributes:
        opening: Called with the size of a context before it is opened.
        running: Texts are being worked on.
    """

    def __init__(self, weights: Weights, vocabulary: Vocabulary, options: ContextOptions, *, pooling: str) -> None:
        self._weights = weights
        self._vocabulary = vocabulary
        self._options = options
        self._pooling = pooling if pooling in ("cls", "last") else "mean"
        # Whether the model sees only what is before a token; the engine says so of a context, not of a file.
        self._causal = True
        self._context: Context | None = None
        self.opening: Callable[[int], None] | None = None
        self.running = False

    @property
    def size(self) -> int:
        """The context that is open now, in tokens; 0 for none."""
        return self._context.n_ctx if self._context else 0

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector a text, in their order.

        Raises:
            UsageError: A text is empty, or has half a character.
            ContextOverflowError: A text is longer than the context.
        """
        tokens = [self._tokens(text) for text in texts]
        vectors: list[list[float]] = []
        self.running = True
        try:
            while len(vectors) < len(tokens):
                group = self._group(tokens[len(vectors) :])
                vectors.extend(self._embed_group(group))
        finally:
            self.running = False
        return vectors

    def _tokens(self, text: str) -> list[int]:
        tokens = self._vocabulary.tokenize(text, special=False, add_special=True)
        if not text or not tokens:
            raise UsageError("text: an empty text has no embedding")
        if len(tokens) > self._options.n_ctx:
            raise ContextOverflowError(
                prompt_tokens=len(tokens),
                n_ctx=self._options.n_ctx,
                reserved=0,
                what="text",
                hint="split the text, or give the model a larger n_ctx",
            )
        return tokens

    def _group(self, tokens: list[list[int]]) -> list[list[int]]:
        """As many texts as fit into a context together."""
        room = max(min(_START, self._options.n_ctx), len(tokens[0]))
        group = []
        for one in tokens[:_TOGETHER]:
            if len(one) > room:
                break
            room -= len(one)
            group.append(one)
        return group

    def _embed_group(self, group: list[list[int]]) -> list[list[float]]:
        context = self._ensure(sum(map(len, group)))
        context.clear()
        items = [Item(sequence, token, output=True) for sequence, tokens in enumerate(group) for token in tokens]
        try:
            if self._causal:
                return self._pooled_here(context, items, len(group))
            context.evaluate(items)
            return [self._unit(self._pointer_sum(context, sequence)) for sequence in range(len(group))]
        finally:
            context.clear()

    def _pooled_here(self, context: Context, items: list[Item], count: int) -> list[list[float]]:
        import numpy as np

        engine = llama()
        sums = np.zeros((count, self._weights.n_embd), dtype=np.float64)
        seen = [0] * count
        for start in range(0, len(items), context.options.n_batch):
            chunk = items[start : start + context.options.n_batch]
            context.evaluate(chunk)
            for index, item in enumerate(chunk):
                pointer = engine.llama_get_embeddings_ith(context.pointer, index)
                if not pointer:
                    raise GenerationError("llama.cpp gave no embedding for a token")
                vector = np.ctypeslib.as_array(pointer, shape=(self._weights.n_embd,))
                first = seen[item.sequence] == 0
                seen[item.sequence] += 1
                if self._pooling == "mean":
                    sums[item.sequence] += vector
                elif self._pooling == "last" or first:
                    sums[item.sequence] = vector
        return [self._unit(vector) for vector in sums]

    def _pointer_sum(self, context: Context, sequence: int) -> Any:
        import numpy as np

        pointer = llama().llama_get_embeddings_seq(context.pointer, sequence)
        if not pointer:
            raise GenerationError("llama.cpp gave no embedding for the text")
        return np.ctypeslib.as_array(pointer, shape=(self._weights.n_embd,)).astype(np.float64)

    def _unit(self, vector: Any) -> list[float]:
        import numpy as np

        length = float(np.linalg.norm(vector))
        if not np.isfinite(length):
            raise GenerationError("the model gave an embedding that is not a number")
        values: list[float] = (vector / length if length else vector).tolist()
        return values

    def _ensure(self, tokens: int) -> Context:
        context = self._context
        if context is not None and context.n_ctx >= tokens:
            return context
        size = min(_START, self._options.n_ctx)
        while size < tokens:
            size *= 2
        size = min(size, self._options.n_ctx)
        self.close()
        if self.opening is not None:
            self.opening(size)
        self._context = Context(self._weights, self._sized(size))
        if self._causal and not self._context.causal:
            self._causal = False
            self._context.close()
            self._context = Context(self._weights, self._sized(size))
        return self._context

    def _sized(self, n_ctx: int) -> ContextOptions:
        from dataclasses import replace

        engine = llama()
        if not self._causal:
            # An encoder sees the whole text at once.
            kinds = {"mean": engine.LLAMA_POOLING_TYPE_MEAN, "cls": engine.LLAMA_POOLING_TYPE_CLS}
            pooling = kinds.get(self._pooling, engine.LLAMA_POOLING_TYPE_LAST)
            return replace(
                self._options, n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx, n_seq_max=_TOGETHER, pooling=pooling
            )
        step = 128
        while step > 16 and step * self._weights.n_vocab * 4 > _LOGITS_BUDGET:
            step //= 2
        return replace(
            self._options,
            n_ctx=n_ctx,
            n_batch=step,
            n_ubatch=step,
            n_seq_max=_TOGETHER,
            pooling=engine.LLAMA_POOLING_TYPE_NONE,
        )


def share_room(session: Session, embedder: Embedder, n_ctx: int) -> None:
    """The plan has room for `n_ctx` tokens: a context that would not fit beside the other one takes its place."""

    def before_chat(tokens: int) -> None:
        if tokens + embedder.size > n_ctx:
            embedder.close()

    def before_embedding(tokens: int) -> None:
        if tokens + session.size > n_ctx:
            session.close()

    session.opening = before_chat
    embedder.opening = before_embedding
