"""The text context of a backend: opened small, grown when a request needs it, shared by the sequences of a batch."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from tea_runtime.context import Context, Item
from tea_runtime.errors import ContextOverflowError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tea_runtime.context import ContextOptions
    from tea_runtime.engine import Weights
    from tea_runtime.generation import Generation

_logger = logging.getLogger("tea_runtime")

#: The context that is opened first, where the plan leaves the choice to us.
START = 4096
# Room for an answer that is asked for before it is known how long it gets.
_ANSWER = 512
#: Sequences that are decoded side by side at most.
MOST_TOGETHER = 16


class Session:
    """Evaluates and continues prompts. Only for the holder of the weights' turnstile.

    Args:
        weights: The model.
        options: How to open the context; its `n_ctx` is the largest that may be used.
        start: Size of the first context.
        opened: Called with every context that is opened.
    """

    def __init__(
        self, weights: Weights, options: ContextOptions, start: int, opened: Callable[[Context], None] | None = None
    ) -> None:
        self._weights = weights
        self._options = options
        self._start = min(start, options.n_ctx)
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
        try:
            for generation in generations:
                self.check(generation.prompt)
            waiting = deque(generation for generation in generations if generation.finish_reason is None)
            if len(waiting) == 1:
                self._run_one(waiting[0])
            elif waiting:
                self._run_together(waiting)
        finally:
            for generation in generations:
                generation.close()

    def _run_one(self, generation: Generation) -> None:
        context = self._ensure(len(generation.prompt) + min(generation.remaining or _ANSWER, _ANSWER))
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
        held: list[int] = []
        state = None
        if old is not None:
            if n_seq_max == 1 and old.options.n_seq_max == 1 and old.used and self._may_carry(old.n_ctx, n_ctx):
                held, state = list(old.sequences[0]), old.save(0)
            # The old one goes first, so that the two are never in memory together.
            old.close()
        options = self._resized(n_ctx, n_seq_max)
        context = Context(self._weights, options)
        self._context = context
        if self._opened is not None:
            self._opened(context)
        carried = state is not None and context.restore(0, state, held)
        if old is not None:
            _logger.info(
                "context of %s: %s → %s tokens%s",
                self._weights.path.name,
                f"{old.n_ctx:,}",
                f"{n_ctx:,}",
                f", {len(held):,} carried over" if carried else "",
            )
        return context

    def _resized(self, n_ctx: int, n_seq_max: int) -> ContextOptions:
        from dataclasses import replace

        return replace(self._options, n_ctx=n_ctx, n_seq_max=n_seq_max)

    def _may_carry(self, old: int, new: int) -> bool:
        """Whether the memory of a smaller context is what the larger one would have computed."""
        if self._weights.n_swa and not self._options.swa_full:
            return False
        # Beyond the original context of a LongRoPE model, llama.cpp uses other factors for every position.
        original = self._weights.original_context
        return not (original and old <= original < new)

    def _run_together(self, waiting: deque[Generation]) -> None:
        needs = {id(generation): self._need(generation) for generation in waiting}
        together = min(len(waiting), MOST_TOGETHER)
        largest = sorted(needs.values(), reverse=True)[:together]
        size = min(max(self._start, sum(largest)), self.n_ctx)
        context = self._context
        if context is None or context.options.n_seq_max < together or context.n_ctx < size:
            context = self._reopen(size, n_seq_max=together)
        active: dict[int, Generation] = {}
        while waiting or active:
            self._admit(context, waiting, active, needs)
            items, outputs = _compose(context, active)
            context.evaluate(items)
            for sequence, index in outputs:
                generation = active[sequence]
                generation.step(context.pointer, index)
                if generation.finish_reason is not None:
                    del active[sequence]

    def _need(self, generation: Generation) -> int:
        remaining = self.n_ctx if generation.remaining is None else generation.remaining
        return min(len(generation.prompt) + remaining, self.n_ctx)

    def _admit(
        self, context: Context, waiting: deque[Generation], active: dict[int, Generation], needs: dict[int, int]
    ) -> None:
        reserved = sum(needs[id(generation)] for generation in active.values())
        free = [sequence for sequence in range(context.options.n_seq_max) if sequence not in active]
        while waiting and free and (not active or reserved + needs[id(waiting[0])] <= context.n_ctx):
            generation = waiting.popleft()
            # The sequence that shares most with the prompt: answers to one instruction have it in common.
            sequence = max(free, key=lambda candidate: _common(context.sequences[candidate], generation.prompt))
            free.remove(sequence)
            generation.reused = context.reuse(sequence, generation.prompt)
            generation.pending = generation.prompt[generation.reused :]
            active[sequence] = generation
            reserved += needs[id(generation)]
        # What idle sequences still hold is only a convenience.
        idle = sum(len(context.sequences[sequence]) for sequence in free)
        if reserved + idle > context.n_ctx:
            for sequence in free:
                context.drop(sequence)


def _common(held: Sequence[int], prompt: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(held, prompt, strict=False)) if a != b), min(len(held), len(prompt)))


def _compose(context: Context, active: dict[int, Generation]) -> tuple[list[Item], list[tuple[int, int]]]:
    """One batch: the next token of every answer, then as much of the waiting prompts as fits."""
    items: list[Item] = []
    outputs: list[tuple[int, int]] = []
    for sequence, generation in sorted(active.items(), key=lambda entry: len(entry[1].pending)):
        chunk = generation.pending[: context.options.n_batch - len(items)]
        if not chunk:
            break
        generation.pending = generation.pending[len(chunk) :]
        items.extend(Item(sequence, token, output=False) for token in chunk)
        if not generation.pending:
            items[-1] = Item(sequence, chunk[-1], output=True)
            outputs.append((sequence, len(items) - 1))
    return items, outputs
