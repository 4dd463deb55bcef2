"""One sampler chain a request: penalties, truncation, temperature, choice, and a grammar that binds the choice."""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

from tea_runtime.llama.engine import llama
from tea_runtime.llama.grammar import Candidates, parse_grammar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tea_runtime.backend import LlmCallParams
    from tea_runtime.llama.grammar import Grammar
    from tea_runtime.llama.weights import Weights

# llama.cpp's defaults (common_params_sampling), which llama-cpp-python has too.
TOP_K, TOP_P, MIN_P, LAST_N = 40, 0.95, 0.05, 64


class Sampler:
    """The sampler of one request. Free it with `close`, or let the garbage collector."""

    def __init__(
        self, weights: Weights, params: LlmCallParams, grammar: str | None = None, *, prompt: Sequence[int] = ()
    ) -> None:
        engine = self._engine = llama()
        self._weights = weights
        self.grammar = parse_grammar(weights, grammar) if grammar is not None else None
        chain = self._chain = engine.llama_sampler_chain_init(engine.llama_sampler_chain_default_params())
        self._free = weakref.finalize(self, engine.llama_sampler_free, chain)
        self._free.atexit = False
        for sampler in _samplers(engine, weights.n_vocab, params):
            engine.llama_sampler_chain_add(chain, sampler)
        #: Whether each token is the most likely one, of those that a grammar allows.
        self.greedy = params.temperature == 0 and not _penalises(params)
        # Logits that are further below the largest one are left out by min_p; what they add to top_p's sum ends further
        # down. Penalties may change any logit.
        least = 0.0 if _penalises(params) else _min_p(params)
        self._near = -math.log(least) if least else math.inf
        self._far = max(self._near, 12.0 if params.top_k is None or params.top_k > 0 else 20.0)
        for token in prompt[-LAST_N:]:  # for the penalties, as llama.cpp's own programs do it
            engine.llama_sampler_accept(chain, token)

    def sample(self, context: Any, index: int, logits: Any, margin: float = 0.0) -> int | None:
        """The next token; None, and nothing is changed, where the most likely one is no `margin` above the others."""
        if self.greedy:  # the same choice as the chain's, without a list of all candidates
            token = int(logits.argmax()) if self.grammar is None else self.grammar.most_likely(logits)
            if margin and self._is_close(logits, token, margin):
                return None
        elif self.grammar is None:
            return int(self._engine.llama_sampler_sample(self._chain, context, index))
        else:
            token = self._sample_by_grammar(self.grammar, logits)
        if self.grammar is not None:
            self.grammar.accept(token)
            self._engine.llama_sampler_accept(self._chain, token)
        return token

    def _is_close(self, logits: Any, token: int, margin: float) -> bool:
        near = (logits > logits[token] - margin).nonzero()[0]
        near = near[near != token]
        return bool(len(near) if self.grammar is None else self.grammar.allowed(near).any())

    def _sample_by_grammar(self, grammar: Grammar, logits: Any) -> int:
        # As llama.cpp's common_sampler_sample: most choices obey the grammar anyway, and testing one token is much
        # cheaper than many. Only a choice that doesn't is taken back and made again.
        token = self._by_chain(logits, (logits >= logits.max() - self._far).nonzero()[0])
        if grammar.allowed([token])[0]:
            return token
        best = grammar.most_likely(logits) if self._far < math.inf else logits.argmin()
        for below in dict.fromkeys((self._near, self._far)):
            tokens = (logits >= logits[best] - below).nonzero()[0]
            tokens = tokens[grammar.allowed(tokens)]
            if len(tokens) == 1:
                return int(tokens[0])
        if not len(tokens):
            raise grammar.dead_end()
        return self._by_chain(logits, tokens)

    def _by_chain(self, logits: Any, tokens: Any) -> int:
        candidates = Candidates(tokens, logits[tokens])
        candidates.apply(self._chain)
        return candidates.selected()

    def close(self) -> None:
        self._free()
        if self.grammar is not None:
            self.grammar.close()


def _penalises(params: LlmCallParams) -> bool:
    return params.repeat_penalty not in (None, 1.0) or bool(params.frequency_penalty or params.presence_penalty)


def _min_p(params: LlmCallParams) -> float:
    return MIN_P if params.min_p is None else params.min_p


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
    yield engine.llama_sampler_init_min_p(_min_p(params), 1)
    yield engine.llama_sampler_init_temp(params.temperature)
    # llama.cpp takes this one number for "any": no seed of a user may become it.
    any_seed = engine.LLAMA_DEFAULT_SEED
    yield engine.llama_sampler_init_dist(any_seed if params.random else params.seed % any_seed)
