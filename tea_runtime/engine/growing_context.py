"""The text context of a model: opened small, and grown when the requests in it need more."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tea_runtime.engine.sequences import HeldSequence, SequencePool, common_prefix
from tea_runtime.llama.context import Context
from tea_runtime.llama.saved_state import SavedState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tea_models.engine.engine_settings import EngineSettings
    from tea_runtime.llama.context import AbortFlag
    from tea_runtime.llama.weights import Weights

_logger = logging.getLogger("tea_runtime")

#: The context that is opened first, where the plan leaves the choice to us.
START = 4096
#: Sequences of a context: those of the requests that are decoded together, and finished ones that are kept.
MOST_SEQUENCES = 32
#: A shorter common beginning is not worth sharing.
SHORTEST_PREFIX = 32


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """How the contexts of a model may be opened."""

    settings: EngineSettings
    start: int = START
    budget: int | None = None
    in_memory: int = 16 * 1024 * 1024
    pooling: str = "mean"


class GrowingContext:
    """Only for the engine's thread."""

    def __init__(
        self,
        weights: Weights,
        plan: ContextPlan,
        abort: AbortFlag,
        *,
        opened: Callable[[Context], None] | None = None,
    ) -> None:
        self._weights = weights
        self.plan = plan
        self._abort = abort
        self._opened = opened
        self.context: Context | None = None
        self.pool: SequencePool | None = None
        self.may_open: Callable[[int], bool] = lambda _size: True

    @property
    def size(self) -> int:
        """The context that is open now, in tokens; 0 for none."""
        return self.context.n_ctx if self.context else 0

    @property
    def n_ctx(self) -> int:
        """The largest context, in tokens."""
        return self.plan.settings.n_ctx

    def ensure(self, cells: int, *, reserved: int = 0) -> Mapping[HeldSequence, HeldSequence | None] | None:
        """See to a context with room for some tokens, as far as the plan allows."""
        size = self.size or min(self.plan.start, self.n_ctx)
        while size < min(cells, self.n_ctx):
            size *= 2
        size = min(size, self.n_ctx)
        if size == self.size:
            return {}
        if not self.may_open(size):
            return None
        if self.context is None or self.pool is None:
            self._open(size)
            return {}
        return self._reopen(self.context, self.pool, size, reserved)

    def close(self) -> None:
        """Free the context and what it holds."""
        if self.context is not None:
            self.context.close()
        self.context = self.pool = None

    def _reopen(
        self, old: Context, pool: SequencePool, n_ctx: int, reserved: int
    ) -> dict[HeldSequence, HeldSequence | None]:
        saved = self._save(old, pool, n_ctx)
        try:
            # The old one goes first, so that the two are never in memory together.
            self.close()
            self._open(n_ctx)
            moved = self._restore(saved, n_ctx - reserved)
        finally:
            for state in saved.values():
                if state is not None:
                    state.close()
        kept = sum(len(held.tokens) for held in moved.values() if held is not None)
        how = f", {kept:,} carried over" if kept else ""
        _logger.info("context of %s: %s → %s tokens%s", self._weights.path.name, f"{old.n_ctx:,}", f"{n_ctx:,}", how)
        return moved

    def _save(self, context: Context, pool: SequencePool, n_ctx: int) -> dict[HeldSequence, SavedState | None]:
        """What is to be carried over, those in use first and the longest first."""
        original = self._weights.original_context
        # Beyond the original context of a LongRoPE model, llama.cpp uses other factors for every position.
        may_carry = not (original and context.n_ctx <= original < n_ctx)
        in_memory = self.plan.in_memory
        saved: dict[HeldSequence, SavedState | None] = {}
        for held in sorted(pool, key=lambda held: (not held.in_use, -len(held.tokens))):
            # What shares a beginning is evaluated from there on again, or the beginning would be there twice.
            shares = not self._weights.recurrent and any(
                common_prefix(held.tokens, other.tokens) >= SHORTEST_PREFIX for other in saved
            )
            if held.tokens and may_carry and not shares:
                saved[held] = state = SavedState(context, held.id, held.tokens, in_memory)
                in_memory -= state.size
            else:
                saved[held] = None
        return saved

    def _restore(
        self, saved: dict[HeldSequence, SavedState | None], room: int
    ) -> dict[HeldSequence, HeldSequence | None]:
        context, pool = self.context, self.pool
        assert context is not None
        assert pool is not None
        moved: dict[HeldSequence, HeldSequence | None] = {}
        for old, state in saved.items():
            moved[old] = None
            if not old.in_use and (state is None or pool.cells + len(old.tokens) > room):
                continue
            source, common = pool.best([*old.tokens, 0]) if state is None else (None, 0)
            held = pool.begin_with(source, common) if source is not None and common else pool.new()
            if held is None:  # fewer sequences than before
                continue
            if state is not None and state.into(context, held.id):
                held.tokens.extend(state.tokens)
            moved[old] = held
            if not old.in_use:
                pool.release(held)
        return moved

    def _open(self, n_ctx: int) -> None:
        settings = replace(self.plan.settings, n_ctx=n_ctx)
        count = MOST_SEQUENCES
        if self.plan.budget is not None and (self._weights.recurrent or self._weights.n_swa):
            count = self._affordable(settings, self.plan.budget)
        self.context = Context(self._weights, replace(settings, n_seq_max=count), self._abort)
        self.pool = SequencePool(self.context)
        if self._opened is not None:
            self._opened(self.context)

    def _affordable(self, settings: EngineSettings, budget: int) -> int:
        """How many sequences there is memory for: a sliding window or a recurrent state is there for each of them."""
        with closing(Context(self._weights, settings)) as one:
            caches, state, compute = one.buffers("KV"), one.buffers("RS"), one.buffers("compute")
        each = sum(state) + self._weights.n_vocab * 4
        if self._weights.n_swa and not settings.swa_full and len(caches) > 1:
            each += caches[-1] * self._weights.n_swa // (self._weights.n_swa + settings.n_ubatch)
        return max(1, min(MOST_SEQUENCES, 1 + (budget - sum(caches) - sum(state) - sum(compute)) // each))
