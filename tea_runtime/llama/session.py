"""The text context of a backend: opened small, grown when a request needs it, shared by the sequences of a batch."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from tea_runtime.errors import ContextOverflowError
from tea_runtime.llama.batch import MOST_TOGETHER, Batch, shared_prefix_of
from tea_runtime.llama.context import Context, Item
from tea_runtime.llama.saved_state import SavedState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tea_runtime.llama.context import ContextOptions
    from tea_runtime.llama.engine import Weights
    from tea_runtime.llama.generation import Generation

_logger = logging.getLogger("tea_runtime")

#: The context that is opened first, where the plan leaves the choice to us.
START = 4096
# Room for an answer that is asked for before it is known how long it gets.
_ANSWER = 512


class Session:
    """Evaluates and continues prompts. Only for the holder of the weights' engine_lock.

    Args:
        weights: The model.
        options: How to open the context; its `n_ctx` is the largest that may be used.
        start: Size of the first context.
        kv_budget: Bytes that the KV cache may take, for batches of models with a sliding window; None for any number.
        in_memory: Bytes of state that may lie in memory beside a context while it grows; larger ones go through a file.
        opened: Called with every context that is opened.

    Attributes:
        opening: Called with the size of a context before it is opened.
        running: A request is being worked on.
    """

    def __init__(
        self,
        weights: Weights,
        options: ContextOptions,
        start: int,
        *,
        kv_budget: int | None = None,
        in_memory: int = 16 * 1024 * 1024,
        opened: Callable[[Context], None] | None = None,
    ) -> None:
        self._weights = weights
        self._options = options
        self._start = min(start, options.n_ctx)
        self._kv_budget = kv_budget
        self._in_memory = in_memory
        self.opening: Callable[[int], None] | None = None
        self.running = False
        self._opened = opened
        self._context: Context | None = None

    @property
    def n_ctx(self) -> int:
        """The largest context, in tokens."""
        return self._options.n_ctx

    @property
    def size(self) -> int:
        """The context that is open now, in tokens; 0 for none."""
        return self._context.n_ctx if self._context else 0

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def check(self, prompt: Sequence[int]) -> None:
        """Check that a prompt and at least one token of an answer fit.

        Raises:
            ContextOverflowError: They don't; the message says by how many tokens.
        """
        if len(prompt) + 1 > self.n_ctx:
            trained = self._weights.n_ctx_train
            hint = "" if self.n_ctx < trained else f"the model was trained for {trained:,} tokens; shorten the prompt"
            raise ContextOverflowError(prompt_tokens=len(prompt), n_ctx=self.n_ctx, hint=hint)

    def run(self, generations: Sequence[Generation]) -> None:
        """Run requests to their end, several of them together.

        Whatever goes wrong in one (its callback raises, its grammar gets stuck) ends all of them and is raised; what is
        in the context's memory stays true, so that the next run may build on it.
        """
        self.running = True
        try:
            for generation in generations:
                self.check(generation.prompt)
            waiting = deque(generation for generation in generations if generation.finish_reason is None)
            if len(waiting) == 1:
                self._run_one(waiting[0])
            elif waiting:
                self._run_together(waiting)
        finally:
            self.running = False
            for generation in generations:
                generation.close()

    def _run_one(self, generation: Generation) -> None:
        context = self._ensure(len(generation.prompt) + min(generation.remaining or _ANSWER, _ANSWER))
        if not generation.params.random:
            # Tokens that were evaluated one by one differ in the last bits from those of a prompt. Whoever gives a seed
            # wants the same answer again, whatever was asked before.
            context.drop(0)
        generation.reused = context.reuse(0, generation.prompt)
        generation.pending = generation.prompt[generation.reused :]
        while generation.finish_reason is None:
            if context.used + len(generation.pending) > context.n_ctx:
                if context.n_ctx >= self.n_ctx:
                    generation.finish("length")
                    return
                context = self._ensure(context.used + len(generation.pending) + _ANSWER)
                generation.pending = (generation.prompt + generation.output)[context.used :]
            chunk = generation.pending[: context.options.n_batch]
            generation.pending = generation.pending[len(chunk) :]
            last = len(chunk) - 1 if not generation.pending else -1
            context.evaluate([Item(0, token, index == last) for index, token in enumerate(chunk)])
            if last >= 0:
                generation.step(context.pointer, last)

    def _run_together(self, waiting: deque[Generation]) -> None:
        shared_prefix = [] if self._weights.recurrent else shared_prefix_of(waiting)
        together = min(len(waiting), MOST_TOGETHER)
        lengths = sorted((generation.length(self.n_ctx) - len(shared_prefix) for generation in waiting), reverse=True)
        while True:
            size = min(max(self._start, len(shared_prefix) + sum(lengths[:together])), self.n_ctx)
            context = self._reopen(size, n_seq_max=together + bool(shared_prefix))
            # A sliding window costs memory for each sequence, which the plan did not count.
            if together == 1 or self._kv_budget is None or context.buffers("KV") <= 1.01 * self._kv_budget:
                break
            together //= 2
        Batch(context, shared_prefix).run(waiting)

    def _ensure(self, tokens: int) -> Context:
        """The context, opened or grown so that `tokens` fit, as far as the limit allows."""
        wanted = min(tokens, self.n_ctx)
        context = self._context
        if context is not None and context.options.n_seq_max == 1 and context.n_ctx >= wanted:
            return context
        size = max(self._start, self.size)
        while size < wanted:
            size *= 2
        return self._reopen(min(size, self.n_ctx), n_seq_max=1)

    def _reopen(self, n_ctx: int, *, n_seq_max: int) -> Context:
        old, self._context = self._context, None
        if old is None:
            return self._open(n_ctx, n_seq_max)
        if (old.n_ctx, old.options.n_seq_max) == (n_ctx, n_seq_max):
            self._context = old
            return old
        alone = n_seq_max == old.options.n_seq_max == 1
        with (
            SavedState(old, self._in_memory) if alone and self._may_carry(old.n_ctx, n_ctx) else nullcontext() as saved
        ):
            # The old one goes first, so that the two are never in memory together.
            old.close()
            context = self._open(n_ctx, n_seq_max)
            kept = saved.into(context) if saved is not None else 0
        if old.n_ctx != n_ctx:
            how = f", {kept:,} carried over" if kept else ""
            _logger.info(
                "context of %s: %s → %s tokens%s", self._weights.path.name, f"{old.n_ctx:,}", f"{n_ctx:,}", how
            )
        return context

    def _open(self, n_ctx: int, n_seq_max: int) -> Context:
        if self.opening is not None:
            self.opening(n_ctx)
        self._context = Context(self._weights, replace(self._options, n_ctx=n_ctx, n_seq_max=n_seq_max))
        if self._opened is not None:
            self._opened(self._context)
        return self._context

    def _may_carry(self, old: int, new: int) -> bool:
        """Whether the memory of a smaller context is what the larger one would have computed."""
        # Beyond the original context of a LongRoPE model, llama.cpp uses other factors for every position.
        original = self._weights.original_context
        return not (original and old <= original < new)
