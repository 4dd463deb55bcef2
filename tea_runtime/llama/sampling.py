"""One sampler chain a request: penalties, truncation, temperature, choice, and a grammar that binds the choice."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import os
import re
import tempfile
import threading
import weakref
from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError
from tea_runtime.errors import GenerationError
from tea_runtime.llama.engine import explanation, llama, log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tea_runtime.backend import LlmCallParams
    from tea_runtime.llama.weights import Weights

# llama.cpp's defaults (common_params_sampling), which llama-cpp-python has too.
TOP_K, TOP_P, MIN_P, LAST_N = 40, 0.95, 0.05, 64

# llama.cpp parses a grammar by recursion: an open bracket a level. It crashes somewhere beyond 50,000.
_GRAMMAR_DEPTH = 500
_GRAMMAR_SIZE = 4 * 1024 * 1024

# The parser prints to stderr: "parse: error parsing grammar: what at the rest of the text", then the whole text.
_PARSE_ERROR = re.compile(r"error parsing grammar: ([^\n]{0,160})")
_stderr_lock = threading.Lock()


class Sampler:
    """The sampler of one request. Free it with `close`, or let the garbage collector."""

    def __init__(
        self, weights: Weights, params: LlmCallParams, grammar: str | None = None, *, prompt: Sequence[int] = ()
    ) -> None:
        engine = self._engine = llama()
        self._weights = weights
        self._grammar = _grammar(weights, grammar) if grammar is not None else None
        chain = self._chain = engine.llama_sampler_chain_init(engine.llama_sampler_chain_default_params())
        self._free = weakref.finalize(self, _free, engine, chain, self._grammar)
        self._free.atexit = False
        for sampler in _samplers(engine, weights.n_vocab, params):
            engine.llama_sampler_chain_add(chain, sampler)
        self.greedy = self._grammar is None and params.temperature == 0 and not _penalises(params)
        for token in prompt[-LAST_N:]:  # for the penalties, as llama.cpp's own programs do it
            engine.llama_sampler_accept(chain, token)

    def sample(self, context: Any, index: int, logits: Any) -> int:
        if self.greedy:  # the same choice without a list of all candidates: the first of the largest
            return int(logits.argmax())
        if self._grammar is None:
            return int(self._engine.llama_sampler_sample(self._chain, context, index))
        return self._sample_by_grammar(logits)

    def _sample_by_grammar(self, logits: Any) -> int:
        # As llama.cpp's common_sampler_sample: most choices obey the grammar anyway, and testing one token is much
        # cheaper than masking a whole vocabulary. Only a choice that doesn't is taken back and made again.
        engine = self._engine
        candidates = _candidates(self._weights.n_vocab)
        array = candidates.fill(logits)
        engine.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = candidates.selected()
        if not candidates.allows(self._grammar, token):
            array = candidates.fill(logits)
            engine.llama_sampler_apply(self._grammar, ctypes.byref(array))
            if not candidates.any_left():
                raise GenerationError(
                    "the grammar allows no token at this point", hint="check the grammar or the schema"
                )
            engine.llama_sampler_apply(self._chain, ctypes.byref(array))
            token = candidates.selected()
        engine.llama_sampler_accept(self._grammar, token)
        engine.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        self._free()


class _Candidates:
    """A `llama_token_data_array` over a numpy array of the whole vocabulary."""

    def __init__(self, size: int) -> None:
        import numpy as np

        self._numpy = np
        self._engine = engine = llama()
        self._size = size
        self._ids = np.arange(size, dtype=np.int32)
        self._data = np.zeros(size, dtype=np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)]))
        self._array = engine.llama_token_data_array()

    def fill(self, logits: Any) -> Any:
        self._data["id"] = self._ids
        self._data["logit"] = logits
        self._data["p"] = 0.0
        array = self._array
        array.data = self._data.ctypes.data_as(self._engine.llama_token_data_p)
        array.size = self._size
        array.selected = -1
        array.sorted = False
        return array

    def selected(self) -> int:
        if not 0 <= self._array.selected < self._array.size:
            raise GenerationError("llama.cpp's sampler chose no token")
        return int(self._array.data[self._array.selected].id)

    def allows(self, grammar: Any, token: int) -> bool:
        one = self._engine.llama_token_data(token, 1.0, 0.0)
        array = self._engine.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        self._engine.llama_sampler_apply(grammar, ctypes.byref(array))
        return math.isfinite(one.logit)

    def any_left(self) -> bool:
        return bool(self._numpy.isfinite(self._data["logit"]).any())


# A vocabulary of 262,144 tokens takes 4 MiB, and requests use it one after the other, in the engine's thread.
_candidates = functools.lru_cache(maxsize=2)(_Candidates)


def _penalises(params: LlmCallParams) -> bool:
    return params.repeat_penalty not in (None, 1.0) or bool(params.frequency_penalty or params.presence_penalty)


def _samplers(engine: Any, n_vocab: int, params: LlmCallParams) -> Iterator[Any]:
    # The penalties walk the whole vocabulary, so they are there only when they do something.
    if _penalises(params):
        penalty = 1.0 if params.repeat_penalty is None else params.repeat_penalty
        frequency, presence = params.frequency_penalty or 0.0, params.presence_penalty or 0.0
        yield engine.llama_sampler_init_penalties(n_vocab, LAST_N, penalty, frequency, presence)
    if params.temperature == 0:
        yield engine.llama_sampler_init_greedy()
        return
    yield engine.llama_sampler_init_top_k(TOP_K if params.top_k is None else params.top_k)
    yield engine.llama_sampler_init_top_p(TOP_P if params.top_p is None else params.top_p, 1)
    yield engine.llama_sampler_init_min_p(MIN_P if params.min_p is None else params.min_p, 1)
    yield engine.llama_sampler_init_temp(params.temperature)
    # llama.cpp takes this one number for "any": no seed of a user may become it.
    any_seed = engine.LLAMA_DEFAULT_SEED
    yield engine.llama_sampler_init_dist(any_seed if params.random else params.seed % any_seed)


def _grammar(weights: Weights, text: str) -> Any:
    if not text.strip():
        raise UsageError("grammar: it is empty, and an empty grammar would allow everything")
    if "\0" in text:
        raise UsageError("grammar: it has a NUL character, which llama.cpp takes for its end")
    if len(text) > _GRAMMAR_SIZE:
        raise UsageError(f"grammar: it has {len(text):,} characters, more than {_GRAMMAR_SIZE:,}")
    if max(itertools.accumulate((character == "(") - (character == ")") for character in text)) > _GRAMMAR_DEPTH:
        raise UsageError(f"grammar: its brackets are nested more than {_GRAMMAR_DEPTH} deep")
    raw = text.encode("utf-8", "replace")
    with log.capture() as lines:
        sampler, printed = _with_stderr(lambda: llama().llama_sampler_init_grammar(weights.vocab, raw, b"root"))
    found = _PARSE_ERROR.search(printed)
    if printed and not found:  # by somebody else
        os.write(2, printed.encode())
    if not sampler:
        parsed = re.sub(r" at\s*$", " at its end", found[1]) if found else ""
        reason = parsed or explanation(lines) or "llama.cpp can't read it"
        raise UsageError(f"grammar: {reason}", hint="a GBNF grammar begins with: root ::= …")
    return sampler


def _with_stderr(work: Callable[[], Any]) -> tuple[Any, str]:
    """Run something, and take what is printed to stderr meanwhile: llama.cpp's grammar parser does so, past its log."""
    with _stderr_lock, tempfile.TemporaryFile() as held:
        try:
            saved = os.dup(2)
        except OSError:  # closed: nothing can be printed
            return work(), ""
        os.dup2(held.fileno(), 2)
        try:
            result = work()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        held.seek(0)
        return result, held.read().decode("utf-8", "replace")


def _free(engine: Any, *samplers: Any) -> None:
    for sampler in filter(None, samplers):
        engine.llama_sampler_free(sampler)
