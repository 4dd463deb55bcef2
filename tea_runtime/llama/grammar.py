"""A grammar in GBNF that binds the choice of tokens, and what it leaves no choice about."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import re
import tempfile
import threading
import weakref
from contextlib import closing
from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError
from tea_runtime.errors import GenerationError
from tea_runtime.llama.engine import explanation, llama, log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tea_runtime.llama.weights import Weights

# llama.cpp parses a grammar by recursion: an open bracket a level. It crashes somewhere beyond 50,000.
_DEPTH = 500
_SIZE = 4 * 1024 * 1024
# How far below the largest logit allowed tokens are looked for, step by step.
_BELOW = (0.0, 2.0, 5.0, 9.0, 14.0, 20.0, math.inf)
# Tokens that are looked at first.
_SOME = 8
# Characters of a grammar that is too large to look ahead.
_LARGE = 8192
# Characters of text that are looked ahead.
_LOOK_AHEAD = 48

# The parser prints to stderr: "parse: error parsing grammar: what at the rest of the text", then the whole text.
_PARSE_ERROR = re.compile(r"error parsing grammar: ([^\n]{0,160})")
_stderr_lock = threading.Lock()


class Candidates:
    """Tokens to choose from: llama.cpp's `llama_token_data_array`."""

    def __init__(self, tokens: Any, logits: Any = 0.0) -> None:
        import numpy as np

        self._engine = llama()
        kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self.data = np.zeros(len(tokens), kind)
        self.data["id"], self.data["logit"] = tokens, logits
        pointer = self.data.ctypes.data_as(self._engine.llama_token_data_p)
        self._array = self._engine.llama_token_data_array(pointer, len(tokens), -1, False)

    def apply(self, sampler: Any) -> None:
        self._engine.llama_sampler_apply(sampler, ctypes.byref(self._array))

    def selected(self) -> int:
        if not 0 <= self._array.selected < self._array.size:
            raise GenerationError("llama.cpp's sampler chose no token")
        return int(self._array.data[self._array.selected].id)


class Grammar:
    """The grammar of one request, and how far its text has come."""

    def __init__(self, sampler: Any, *, large: bool = False) -> None:
        self._engine = llama()
        self._large = large  # llama.cpp copies it slowly
        #: llama.cpp's sampler.
        self.sampler = sampler
        self._free = weakref.finalize(self, self._engine.llama_sampler_free, sampler)
        self._free.atexit = False

    def allowed(self, tokens: Any) -> Any:
        """Which of some tokens (a sequence of numbers) may come next, as a numpy array of truth values."""
        import numpy as np

        candidates = Candidates(tokens)
        candidates.apply(self.sampler)
        return np.isfinite(candidates.data["logit"])

    def accept(self, token: int) -> None:
        self._engine.llama_sampler_accept(self.sampler, token)

    def _copied(self) -> closing[Grammar]:
        return closing(Grammar(self._engine.llama_sampler_clone(self.sampler)))

    def most_likely(self, logits: Any) -> int:
        """The token with the largest logit of those that may come next, the first of several."""
        largest, asked = logits.max(), math.inf
        for below in _BELOW:  # asking for some tokens is much cheaper than for a whole vocabulary
            tokens = ((logits >= largest - below) & (logits < asked)).nonzero()[0]
            tokens = tokens[self.allowed(tokens)]
            if len(tokens):
                return int(tokens[logits[tokens].argmax()])
            asked = largest - below
        raise self.dead_end()

    def dead_end(self) -> GenerationError:
        return GenerationError("the grammar allows no token at this point", hint="check the grammar or the schema")

    def forced(self, characters: Mapping[int, str], before: str) -> str:
        """The text that comes next, as far as there is one way to go on: keys, brackets, quotes.

        White space that may be left out is taken to stand where people put it, after a comma and a colon.

        Args:
            characters: Tokens of one character each, and what they stand for; "" for the end of the answer.
            before: The text up to here; the last character is enough.
        """
        if self._large or self.allowed(list(characters)[:_SOME]).sum() > _SOME / 2:  # within a text
            return ""
        token, text = self._only(characters, before), ""
        if token is None:
            return text
        with self._copied() as ahead:
            while token is not None and len(text) < _LOOK_AHEAD:
                text += characters[token]
                ahead.accept(token)
                token = ahead._only(characters, text)  # noqa: SLF001 - the same class
        return text

    def _only(self, characters: Mapping[int, str], before: str) -> int | None:
        """The only token of one character that may come next."""
        tokens = list(characters)
        allowed = [tokens[place] for place in self.allowed(tokens).nonzero()[0]]
        if len(allowed) == 2:  # with or without a blank
            blank = before[-1:] in (",", ":")
            allowed = [token for token in allowed if (characters[token] == " ") == blank]
        return allowed[0] if len(allowed) == 1 and characters[allowed[0]] else None

    def obeyed(self, tokens: Sequence[int]) -> int:
        """How many of some tokens may come next, one after the other."""
        if self._large or not tokens:
            return len(tokens)
        with self._copied() as ahead:
            for count, token in enumerate(tokens):
                if not ahead.allowed([token])[0]:
                    return count
                ahead.accept(token)
        return len(tokens)

    def close(self) -> None:
        self._free()


def parse_grammar(weights: Weights, text: str) -> Grammar:
    """Read a grammar. Raises: UsageError: it is none."""
    if not text.strip():
        raise UsageError("grammar: it is empty, and an empty grammar would allow everything")
    if "\0" in text:
        raise UsageError("grammar: it has a NUL character, which llama.cpp takes for its end")
    if len(text) > _SIZE:
        raise UsageError(f"grammar: it has {len(text):,} characters, more than {_SIZE:,}")
    if max(itertools.accumulate((character == "(") - (character == ")") for character in text)) > _DEPTH:
        raise UsageError(f"grammar: its brackets are nested more than {_DEPTH} deep")
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
    return Grammar(sampler, large=len(text) > _LARGE)


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
