"""One sampler chain a request: penalties, truncation, temperature, choice, and a grammar that binds the choice."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import re
import tempfile
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError
from tea_runtime.errors import GenerationError
from tea_runtime.llama.engine import explanation, llama, log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

    def __init__(self, weights: Weights, params: LlmCallParams, grammar: str | None = None) -> None:
        engine = llama()
        self._engine = engine
        self._weights = weights
        self._grammar = _grammar(weights, grammar) if grammar is not None else None
        chain = engine.llama_sampler_chain_init(engine.llama_sampler_chain_default_params())
        self._chain = chain
        self._free = weakref.finalize(self, _free, engine, chain, self._grammar)
        self._free.atexit = False
        for sampler in _samplers(engine, weights.n_vocab, params):
            engine.llama_sampler_chain_add(chain, sampler)
        self._greedy = self._grammar is None and params.temperature == 0 and not _penalises(params)

    def accept_prompt(self, tokens: list[int]) -> None:
        """Let the penalties see the end of the prompt, as llama.cpp's own programs do."""
        for token in tokens[-LAST_N:]:
            self._engine.llama_sampler_accept(self._chain, token)

    def sample(self, context: Any, index: int, logits: Any) -> int:
        """Choose the next token, and remember the choice."""
        if self._greedy:  # the same choice without a list of all candidates: the first of the largest
            return int(logits.argmax())
        if self._grammar is None:
            return int(self._engine.llama_sampler_sample(self._chain, context, index))
        return self._sample_by_grammar(logits)

    def _sample_by_grammar(self, logits: Any) -> int:
        # As llama.cpp's common_sampler_sample: most choices obey the grammar anyway, and testing one token is much
        # cheaper than masking a whole vocabulary. Only a choice that doesn't is taken back and made again.
        engine = self._engine
        candidates = _candidates_of(self._weights)
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
        """Free what llama.cpp holds for this request."""
        self._free()


class _Candidates:
    """A `llama_token_data_array` over a numpy array of the whole vocabulary."""

    def __init__(self, engine: Any, size: int) -> None:
        import numpy as np

        self._numpy = np
        self._engine = engine
        self._size = size
        self._ids = np.arange(size, dtype=np.int32)
        self._data = np.zeros(size, dtype=np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)]))
        self._array = engine.llama_token_data_array()
        self._one = (engine.llama_token_data * 1)()

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
        one = self._one
        one[0].id, one[0].logit, one[0].p = token, 1.0, 0.0
        array = self._engine.llama_token_data_array(ctypes.cast(one, self._engine.llama_token_data_p), 1, -1, False)
        self._engine.llama_sampler_apply(grammar, ctypes.byref(array))
        return math.isfinite(one[0].logit)

    def any_left(self) -> bool:
        return bool(self._numpy.isfinite(self._data["logit"]).any())


# One for each model: a vocabulary of 262,144 tokens takes 4 MiB, and requests use it one after the other.
_candidates: weakref.WeakKeyDictionary[Weights, _Candidates] = weakref.WeakKeyDictionary()


def _candidates_of(weights: Weights) -> _Candidates:
    found = _candidates.get(weights)
    if found is None:
        found = _candidates[weights] = _Candidates(llama(), weights.n_vocab)
    return found


def _penalises(params: LlmCallParams) -> bool:
    return params.repeat_penalty not in (None, 1.0) or bool(params.frequency_penalty or params.presence_penalty)


def _samplers(engine: Any, n_vocab: int, params: LlmCallParams) -> list[Any]:
    chain = []
    # The penalties walk the whole vocabulary, so they are there only when they do something.
    if _penalises(params):
        penalty = 1.0 if params.repeat_penalty is None else params.repeat_penalty
        frequency = params.frequency_penalty or 0.0
        presence = params.presence_penalty or 0.0
        chain.append(engine.llama_sampler_init_penalties(n_vocab, LAST_N, penalty, frequency, presence))
    if params.temperature == 0:
        return [*chain, engine.llama_sampler_init_greedy()]
    top_k = TOP_K if params.top_k is None else params.top_k
    top_p = TOP_P if params.top_p is None else params.top_p
    min_p = MIN_P if params.min_p is None else params.min_p
    # llama.cpp takes this one number for "any": no seed of a user may become it.
    seed = engine.LLAMA_DEFAULT_SEED if params.random else params.seed % engine.LLAMA_DEFAULT_SEED
    return [
        *chain,
        engine.llama_sampler_init_top_k(top_k),
        engine.llama_sampler_init_top_p(top_p, 1),
        engine.llama_sampler_init_min_p(min_p, 1),
        engine.llama_sampler_init_temp(params.temperature),
        engine.llama_sampler_init_dist(seed),
    ]


def _grammar(weights: Weights, text: str) -> Any:
    if not text.strip():
        raise UsageError("grammar: it is empty, and an empty grammar would allow everything")
    if "\0" in text:
        raise UsageError("grammar: it has a NUL character, which llama.cpp takes for its end")
    if len(text) > _GRAMMAR_SIZE:
        raise UsageError(f"grammar: it has {len(text):,} characters, more than {_GRAMMAR_SIZE:,}")
    if max(itertools.accumulate((character == "(") - (character == ")") for character in text)) > _GRAMMAR_DEPTH:
        raise UsageError(f"grammar: its brackets are nested more than {_GRAMMAR_DEPTH} deep")
    engine = llama()
    with log.capture() as lines, _held_stderr() as printed:
        sampler = engine.llama_sampler_init_grammar(weights.vocab, text.encode("utf-8", "replace"), b"root")
        if not sampler:
            found = _PARSE_ERROR.search(printed())
    if not sampler:
        reason = (
            (re.sub(r" at\s*$", " at its end", found[1]) if found else "")
            or explanation(lines)
            or "llama.cpp can't read it"
        )
        raise UsageError(f"grammar: {reason}", hint="a GBNF grammar begins with: root ::= …")
    return sampler


@contextmanager
def _held_stderr() -> Iterator[Callable[[], str]]:
    """Keep what llama.cpp's grammar parser prints to stderr, past its log; what others print meanwhile is passed on."""
    with _stderr_lock, tempfile.TemporaryFile() as held:

        def printed() -> str:
            held.seek(0)
            return held.read().decode("utf-8", "replace")

        try:
            saved = os.dup(2)
        except OSError:  # closed: nothing can be printed
            yield printed
            return
        os.dup2(held.fileno(), 2)
        try:
            yield printed
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            text = printed()
            if text and not _PARSE_ERROR.search(text):
                os.write(2, text.encode())


def _free(engine: Any, chain: Any, grammar: Any) -> None:
    engine.llama_sampler_free(chain)
    if grammar is not None:
        engine.llama_sampler_free(grammar)
