"""One answer while it is made: sampling, text that is safe to show, stop texts, the reason for the end."""

from __future__ import annotations

import codecs
import math
import time
from typing import TYPE_CHECKING, Any

from tea_runtime.errors import GenerationError
from tea_runtime.llama.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tea_runtime.backend import LlmCallParams
    from tea_runtime.llama.chat_formats import ChatFormat
    from tea_runtime.llama.context import Context
    from tea_runtime.llama.weights import Vocabulary, Weights

# Every form of a call begins with one of these; the words are those of Command R and functionary.
_BEGINNINGS = ("<", "[", "{", "`", "Action:", "functools")


class StopMatcher:
    """Lets text through up to the first stop text, and holds back what could be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Add text and return what is certainly before any stop text."""
        if self.stopped:
            return ""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            safe, self._held = self._held[: min(found)], ""
            return safe
        hold = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        safe, self._held = self._held[: len(self._held) - hold], self._held[len(self._held) - hold :]
        return safe

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((length for length in range(len(stop) - 1, 0, -1) if text.endswith(stop[:length])), 0)


class ToolTextFilter:
    """Lets the text of an answer through up to where a tool call could begin; white space waits for what comes next."""

    def __init__(self) -> None:
        self.shown = ""
        self._matcher = StopMatcher(_BEGINNINGS)
        self._space = ""

    def feed(self, text: str) -> str:
        text = self._space + self._matcher.feed(text)
        safe = text.rstrip()
        self._space = text[len(safe) :]
        self.shown += safe
        return safe

    def rest(self, content: str) -> str:
        """What is still to be shown, once the answer is there without its calls."""
        return content[len(self.shown) :] if content.startswith(self.shown) else ""


class Generation:
    """One answer, from its prompt to its last token: made by a caller's thread, worked on by the engine's."""

    def __init__(
        self,
        weights: Weights,
        vocabulary: Vocabulary,
        prompt: list[int],
        params: LlmCallParams,
        *,
        stops: Sequence[str] = (),
        grammar: str | None = None,
        chat_format: ChatFormat | None = None,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.output: list[int] = []
        self.finish_reason: str | None = None
        self.reused = 0
        self.guessed = self.guessed_right = 0  # tokens of prompt lookup
        self.alone = True
        self.started = self._first = self._ended = time.perf_counter()
        self.logprobs: list[dict[str, Any]] | None = [] if params.logprobs not in (None, False) else None
        self.emit: Callable[[str], None] | None = None
        self._weights = weights
        self._vocabulary = vocabulary
        #: Reads tool calls out of the text, if any are possible; their marks may be control tokens.
        self.chat_format = chat_format
        # A character that is split over tokens is held until it is whole; bytes that are no UTF-8 become U+FFFD.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matcher = StopMatcher(stops)
        self._stop_tokens = {vocabulary.specials[stop] for stop in stops if stop in vocabulary.specials}
        self._text: list[str] = []
        self._sampler = Sampler(weights, params, grammar, prompt=prompt)
        if params.max_tokens == 0:
            self.finish("length")

    @property
    def greedy(self) -> bool:
        """Whether each token is the most likely one."""
        return self._sampler.greedy

    @property
    def guessable(self) -> bool:
        """Whether tokens may be guessed; not where a seed asks for the same answer: that takes the same steps."""
        return self.greedy or (self._sampler.grammar is not None and self.params.temperature > 0 and self.params.random)

    def forced(self) -> list[int]:
        """Tokens that the grammar leaves no choice about, probably: a text can be cut into tokens in several ways."""
        grammar, vocabulary = self._sampler.grammar, self._vocabulary
        if grammar is None:
            return []
        last = vocabulary.piece(self.output[-1]).decode("utf-8", "replace")
        return vocabulary.continuation(grammar.forced(vocabulary.characters, last))

    def possible(self, tokens: list[int]) -> list[int]:
        """The first ones of some tokens, as far as the grammar allows them."""
        grammar = self._sampler.grammar
        return tokens if grammar is None else tokens[: grammar.obeyed(tokens)]

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def remaining(self) -> int | None:
        """Tokens the answer may still get, or None for any number."""
        return None if self.params.max_tokens is None else self.params.max_tokens - len(self.output)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output

    def step(self, context: Context, index: int, margin: float = 0.0) -> bool:
        """Choose the next token from the logits at `index` of the last batch and take it into the answer.

        False, and nothing is changed, if the most likely token is no `margin` above the others.
        """
        logits = context.logits(index)
        if math.isnan(logits.max()):
            raise GenerationError(
                f"{self._weights.path}: the model computes NaN instead of numbers: its weights are damaged",
                hint=f"tea-models verify {self._weights.path}, and get the file again",
            )
        token = self._sampler.sample(context.pointer, index, logits, margin)
        if token is None:
            return False
        if self._vocabulary.is_end(token) or token in self._stop_tokens:
            self.finish("stop")
            return True
        if not self.output:
            self._first = time.perf_counter()
        self.output.append(token)
        if self.logprobs is not None:
            self.logprobs.append(self._logprob(logits, token))
        self._emit(
            self._matcher.feed(
                self._decoder.decode(self._vocabulary.piece(token, special=self.chat_format is not None))
            )
        )
        if self._matcher.stopped:
            self.finish("stop")
        elif self.remaining == 0:
            self.finish("length")
        return True

    def finish(self, reason: str) -> None:
        """End the answer; text that was held back for a stop text comes out now."""
        self.finish_reason = reason
        self._ended = time.perf_counter()
        self._emit(self._matcher.flush())

    def close(self) -> None:
        self._sampler.close()
        self.emit = None

    def usage(self) -> dict[str, int]:
        """Tokens as OpenAI counts them, and how many of the prompt were still in memory."""
        prompt, output = len(self.prompt), len(self.output)
        counts = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        return {**counts, "cached_tokens": self.reused}

    def timings(self) -> dict[str, float]:
        """Tokens and milliseconds of prompt and answer, as llama-server names them."""
        counts = len(self.prompt) - self.reused, len(self.output)
        seconds = max(self._first - self.started, 1e-9), max(self._ended - self._first, 1e-9)
        timings: dict[str, float] = {"cache_n": self.reused}
        for name, count, took in zip(("prompt", "predicted"), counts, seconds, strict=True):
            timings |= {f"{name}_n": count, f"{name}_ms": took * 1000, f"{name}_per_second": count / took}
        guesses = {"draft_n": self.guessed, "draft_n_accepted": self.guessed_right}
        return timings | guesses if self.guessed else timings

    def _emit(self, text: str) -> None:
        if not text:
            return
        self._text.append(text)
        if self.emit is not None:
            self.emit(text)

    def _logprob(self, logits: Any, token: int) -> dict[str, Any]:
        import numpy as np

        size = self._vocabulary.size
        logits = logits.astype(np.float64)
        top = float(logits.max())
        total = top + math.log(float(np.exp(logits - top).sum()))
        wanted = 0 if self.params.logprobs is True else int(self.params.logprobs or 0)
        best = np.argpartition(-logits, min(wanted, size - 1))[:wanted]
        entry = self._logprob_entry(token, float(logits[token]) - total)
        entry["top_logprobs"] = [
            self._logprob_entry(int(other), float(logits[other]) - total)
            for other in sorted(best, key=lambda other: -logits[other])
        ]
        return entry

    def _logprob_entry(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self._vocabulary.piece(token, special=True)
        return {"token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": logprob}
