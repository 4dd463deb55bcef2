"""The text context of a model: opened small, and grown when the requests in it need more."""

from __future__ import annotations

import logging
import tempfile
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tea_runtime.engine.sequences import HeldSequence, SequencePool, common_prefix
from tea_runtime.llama.context import AbortFlag, Context

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tea_models.engine.engine_settings import EngineSettings
    from tea_runtime.engine.prompt_cache import PromptCache
    from tea_runtime.llama.weights import Weights

_logger = logging.getLogger("tea_runtime")

#: The context that is opened first, where the plan leaves the choice to us.
START = 1024
#: Sequences of a context: those of the requests that are decoded together, and finished ones that are kept.
MOST_SEQUENCES = 32
#: A shorter common beginning is not worth sharing.
SHORTEST_PREFIX = 32


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is opened, and how: equal ones share a model."""

    path: Path
    settings: EngineSettings  # its `n_ctx` is the largest that may be used
    start: int = START  # tokens of the first context
    budget: int | None = None  # bytes of cache and compute buffers, where each sequence needs more; None for any number
    pooling: str = "mean"  # how the vectors of tokens become that of a text; or `cls`, `last`, `rank`
    prompt_cache: PromptCache | None = None


class GrowingContext:
    """Only for the engine's thread."""

    def __init__(self, weights: Weights, spec: ModelSpec, abort: AbortFlag) -> None:
        self._weights = weights
        self.spec = spec
        self._abort = abort
        # The sequences of the context that is open.
        self.pool: SequencePool | None = None
        # Asked before a context of a size is opened, whether there is room for it now.
        self.may_open: Callable[[int], bool] = lambda _size: True

    @property
    def size(self) -> int:
        return self.pool.context.n_ctx if self.pool else 0

    @property
    def n_ctx(self) -> int:
        return self.spec.settings.n_ctx

    def ensure(self, cells: int, *, reserved: int = 0) -> Mapping[HeldSequence, HeldSequence | None] | None:
        """See to a context for some tokens, of which `reserved` are still to come; None if there is no room for it now.

        The result says of each sequence of an old context what became of it in a new one (None: nothing).
        """
        size = enlarged(self.size or self.spec.start, cells, self.n_ctx)
        if size == self.size:
            return {}
        if not self.may_open(size):
            return None
        if self.pool is None:
            self._open(size)
            return {}
        return self._reopen(self.pool, size, reserved)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.context.close()
        self.pool = None

    def _reopen(self, old: SequencePool, n_ctx: int, reserved: int) -> dict[HeldSequence, HeldSequence | None]:
        with _folder() as folder:
            saved = self._save(old, n_ctx, folder)
            # The old one goes first, so that the two are never in memory together.
            self.close()
            moved = self._restore(saved, self._open(n_ctx), n_ctx - reserved)
        kept = sum(len(held.tokens) for held in moved.values() if held is not None)
        how = f"{old.context.n_ctx:,} → {n_ctx:,} tokens" + (f", {kept:,} carried over" if kept else "")
        _logger.info("context of %s: %s", self._weights.path.name, how)
        return moved

    def _save(self, pool: SequencePool, n_ctx: int, folder: str | None) -> dict[HeldSequence, Path | None]:
        """The files of what is carried over, those in use first and the longest first; the rest is evaluated again."""
        original = self._weights.original_context
        # Beyond the original context of a LongRoPE model, llama.cpp uses other factors for every position.
        may_carry = folder is not None and not (original and pool.context.n_ctx <= original < n_ctx)
        saved: dict[HeldSequence, Path | None] = {}
        for held in sorted(pool, key=lambda held: (not held.in_use, -len(held.tokens))):
            # What shares a beginning is evaluated from there on again, or the beginning would be there twice.
            shares = not self._weights.recurrent and any(
                common_prefix(held.tokens, other.tokens) >= SHORTEST_PREFIX for other in saved
            )
            path = Path(folder or "", str(held.id))
            carried = held.tokens and may_carry and not shares and pool.context.save(held.id, path, held.tokens)
            saved[held] = path if carried else None
        return saved

    def _restore(
        self, saved: dict[HeldSequence, Path | None], pool: SequencePool, room: int
    ) -> dict[HeldSequence, HeldSequence | None]:
        moved: dict[HeldSequence, HeldSequence | None] = {}
        for old, path in saved.items():
            moved[old] = None
            if not old.in_use and (path is None or pool.cells + len(old.tokens) > room):
                continue
            source, common = pool.best([*old.tokens, 0]) if path is None else (None, 0)
            held = pool.begin_with(source, common) if source is not None and common else pool.new()
            if held is None:  # fewer sequences than before
                continue
            if path is not None and pool.context.restore(held.id, path) is not None:
                held.tokens.extend(old.tokens)
            moved[old] = held
            if not old.in_use:
                pool.release(held)
        return moved

    def _open(self, n_ctx: int) -> SequencePool:
        settings = replace(self.spec.settings, n_ctx=n_ctx)
        count = MOST_SEQUENCES
        if self.spec.budget is not None and (self._weights.recurrent or self._weights.n_swa):
            count = self._affordable(settings, self.spec.budget)
        self.pool = SequencePool(Context(self._weights, replace(settings, n_seq_max=count), self._abort))
        return self.pool

    def _affordable(self, settings: EngineSettings, budget: int) -> int:
        """How many sequences there is memory for: a sliding window or a recurrent state is there for each of them."""
        with closing(Context(self._weights, settings)) as one:
            caches, state, compute = one.buffers("KV"), one.buffers("RS"), one.buffers("compute")
        each = sum(state) + self._weights.n_vocab * 4
        if self._weights.n_swa and not settings.swa_full and len(caches) > 1:
            each += caches[-1] * self._weights.n_swa // (self._weights.n_swa + settings.n_ubatch)
        return max(1, min(MOST_SEQUENCES, 1 + (budget - sum(caches) - sum(state) - sum(compute)) // each))


def enlarged(size: int, tokens: int, most: int) -> int:
    """A size of context, doubled until it has room for some tokens, as far as it may."""
    while size < min(tokens, most):
        size *= 2
    return min(size, most)


def _folder() -> AbstractContextManager[str | None]:
    """A folder that nobody else can read; None where there is no room for one."""
    try:
        return tempfile.TemporaryDirectory(prefix="tea-")
    except OSError:
        return nullcontext(None)
