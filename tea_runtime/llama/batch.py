"""Several answers decoded together: one batch holds the next token of each, and prompts fill what is left of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tea_runtime.llama.context import Item

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable

    from tea_runtime.llama.context import Context
    from tea_runtime.llama.generation import Generation

#: Sequences that are decoded side by side at most.
MOST_TOGETHER = 16
# A shorter common beginning is not worth a sequence of its own.
_SHORTEST_PREFIX = 32


def shared_prefix_of(generations: Iterable[Generation]) -> list[int]:
    """What all prompts begin with, such as one instruction for many texts; [] if it is too short to matter."""
    prompts = [generation.prompt for generation in generations]
    shortest = min(map(len, prompts)) - 1  # a token of each is left to evaluate
    columns = itertools.islice(zip(*prompts, strict=False), max(shortest, 0))
    length = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return prompts[0][:length] if length >= _SHORTEST_PREFIX else []


class Batch:
    """Runs requests together in a context that has a sequence for each of them, and one more for the shared prefix.

    Args:
        context: The context; what it holds is dropped.
        shared_prefix: What all prompts begin with; evaluated once, and shared by all sequences.
    """

    def __init__(self, context: Context, shared_prefix: list[int]) -> None:
        self._context = context
        self._shared_prefix = shared_prefix
        self._sequences = context.options.n_seq_max - bool(shared_prefix)
        self._active: dict[int, Generation] = {}

    def run(self, waiting: deque[Generation]) -> None:
        """Run all requests to their end; those that don't fit beside the others wait for their turn."""
        context = self._context
        context.clear()
        for start in range(0, len(self._shared_prefix), context.options.n_batch):
            chunk = self._shared_prefix[start : start + context.options.n_batch]
            context.evaluate([Item(self._sequences, token, output=False) for token in chunk])
        while waiting or self._active:
            self._admit(waiting)
            items, outputs = self._compose()
            context.evaluate(items)
            for sequence, index in outputs:
                generation = self._active[sequence]
                generation.step(context.pointer, index)
                if generation.pending and len(context.sequences[sequence]) >= context.n_ctx:
                    generation.finish("length")
                if generation.finish_reason is not None:
                    del self._active[sequence]
                    context.drop(sequence)

    def need(self, generation: Generation) -> int:
        """Room that a request takes at most, beside the shared prefix."""
        return generation.length(self._context.n_ctx) - len(self._shared_prefix)

    def _admit(self, waiting: deque[Generation]) -> None:
        room = self._context.n_ctx - len(self._shared_prefix) - sum(map(self.need, self._active.values()))
        free = [sequence for sequence in range(self._sequences) if sequence not in self._active]
        for sequence in free:
            if not waiting or (self._active and self.need(waiting[0]) > room):
                return
            generation = waiting.popleft()
            room -= self.need(generation)
            if self._shared_prefix:
                self._context.copy(self._sequences, sequence)
            generation.reused = len(self._shared_prefix)
            generation.pending = generation.prompt[len(self._shared_prefix) :]
            self._active[sequence] = generation

    def _compose(self) -> tuple[list[Item], list[tuple[int, int]]]:
        """The items of one batch, and for each answer that goes on: its sequence and where its logits will be."""
        items: list[Item] = []
        outputs: list[tuple[int, int]] = []
        most = self._context.options.n_batch
        for sequence, generation in sorted(self._active.items(), key=lambda entry: len(entry[1].pending)):
            chunk = generation.pending[: most - len(items)]
            if not chunk:
                break
            generation.pending = generation.pending[len(chunk) :]
            items.extend(Item(sequence, token, output=False) for token in chunk)
            if not generation.pending:
                items[-1] = Item(sequence, chunk[-1], output=True)
                outputs.append((sequence, len(items) - 1))
        return items, outputs
