"""Messages to tokens: the template's own control tokens are parsed, the same texts inside a message stay text.

Tokenising a rendered prompt as a whole, as most programs do, lets a user's `<|im_end|>` end the turn. Here a text that
could become a control token is replaced by a character of the private use area before the template sees it; what the
template writes itself is split at its control tokens, and the texts go back as plain text. A prompt whose messages hold
no such text (nearly all) is tokenised as a whole, exactly as llama.cpp's own programs do.
"""

from __future__ import annotations

import bisect
import functools
import re
from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError
from tea_runtime.llama.contents import Contents
from tea_runtime.llama.engine import llama
from tea_runtime.llama.vocabulary import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tea_runtime.llama.vocabulary import Vocabulary

# Tokens that users may type and templates look for on purpose: they don't delimit turns.
_TEMPLATE_LOGIC = re.compile(r"think|reason|tool", re.IGNORECASE)
_MARK_SHAPE = re.compile(r"<\S+>\Z|\[\S+\]\Z")
# A private use plane, which no tokenizer treats specially and no template looks for.
_PRIVATE = range(0x100000, 0x10FFFD)
# Shorter ends of a control token's text (a lone "<") are common in texts and can't be completed by a template.
_SHORTEST_PART = 2


class Markers:
    """The texts that must not become control tokens when they stand in a message.

    Args:
        vocabulary: The model's vocabulary.
        template: The template's source; user-defined tokens that it writes delimit turns too.
    """

    def __init__(self, vocabulary: Vocabulary, template: str) -> None:
        engine = llama()
        hard = engine.LLAMA_TOKEN_ATTR_CONTROL | engine.LLAMA_TOKEN_ATTR_UNKNOWN
        #: Parsed by llama.cpp only where special tokens are asked for.
        self.control: dict[str, int] = {}
        #: Parsed by llama.cpp always.
        self.defined: dict[str, int] = {}
        for text, token in vocabulary.specials.items():
            if vocabulary.attributes(token) & hard:
                self.control[text] = token
            elif vocabulary.is_end(token) or (
                text in template and _MARK_SHAPE.match(text) and not _TEMPLATE_LOGIC.search(text)
            ):
                self.defined[text] = token
        self._all = self.control | self.defined
        self._lengths = sorted({len(text) for text in self._all}, reverse=True)
        firsts = "".join(re.escape(first) for first in sorted({text[0] for text in self._all}))
        self._first = re.compile(f"[{firsts}]" if firsts else r"(?!)")

    def find(self, text: str) -> Iterator[tuple[int, str]]:
        """The markers in a text from left to right, the longest where several begin: place and text."""
        end = 0
        for match in self._first.finditer(text):
            start = match.start()
            if start < end:
                continue
            for length in self._lengths:
                marker = text[start : start + length]
                if len(marker) == length and marker in self._all:
                    yield start, marker
                    end = start + length
                    break

    def parts(self, text: str) -> tuple[str, str]:
        """The beginning of a text that could end a marker, and the end that could begin one; "" each if none."""
        longest = self._lengths[0] - 1 if self._lengths else 0
        head = tail = ""
        for length in range(min(longest, len(text)), _SHORTEST_PART - 1, -1):
            if not tail and _begins(self._sorted, text[-length:]):
                tail = text[-length:]
            if not head and _begins(self._reversed, text[length - 1 :: -1]):
                head = text[:length]
        return head, tail

    @functools.cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._all)

    @functools.cached_property
    def _reversed(self) -> list[str]:
        return sorted(text[::-1] for text in self._all)


def _begins(texts: list[str], start: str) -> bool:
    place = bisect.bisect_left(texts, start)
    return place < len(texts) and texts[place].startswith(start)


class ChatPrompt:
    """Turns messages into tokens by a template.

    Args:
        vocabulary: The model's vocabulary.
        template: The Jinja source of the chat template (for `render` to use, and for the texts in it).
        render: Renders messages and tools; gets the keyword arguments `tools` and the template's variables.
    """

    def __init__(self, vocabulary: Vocabulary, template: str, render: Callable[..., str]) -> None:
        self._vocabulary = vocabulary
        self._contents = Contents(render)
        self._markers = Markers(vocabulary, template)

    def tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt as it goes to the model.

        Raises:
            TemplateError: The template fails on these messages.
            UsageError: A text has half a character.
            UnsupportedError: A message has a part that is no text.
        """
        given = {"messages": list(messages), "tools": None if tools is None else list(tools), **(variables or {})}
        try:
            texts = list(_strings(given))
        except RecursionError:
            raise UsageError("messages: they are nested too deeply, or hold themselves") from None
        given["messages"] = self._contents.arranged(messages)
        if given["messages"] != list(messages):  # joined texts may hold what none of them held alone
            texts = list(_strings(given))
        for text in texts:
            encode(text)
        dangerous = self._dangerous(texts)
        if not dangerous:
            return self._vocabulary.prompt(self._contents.render(**given))
        stand_ins = _stand_ins(dangerous, texts)
        pattern = re.compile("|".join(map(re.escape, sorted(stand_ins, key=len, reverse=True))))
        rendered = self._contents.render(**_replaced(given, pattern, stand_ins))
        return self._vocabulary.with_bos(self._tokenize(rendered, stand_ins))

    def _dangerous(self, texts: list[str]) -> set[str]:
        found: set[str] = set()
        for text in texts:
            found.update(marker for _, marker in self._markers.find(text))
            found.update(part for part in self._markers.parts(text) if part)
        return found

    def _tokenize(self, rendered: str, stand_ins: Mapping[str, str]) -> list[int]:
        """Tokens of a text in which only the template's own markers are markers."""
        back = {character: text for text, character in stand_ins.items()}
        tokens: list[int] = []
        start = 0
        strip_next = False
        engine = llama()
        for place, marker in [*self._markers.find(rendered), (len(rendered), "")]:
            text = rendered[start:place]
            if strip_next:
                text = text.lstrip()
            token = self._markers.control.get(marker, self._markers.defined.get(marker))
            attributes = 0 if token is None else self._vocabulary.attributes(token)
            if attributes & engine.LLAMA_TOKEN_ATTR_LSTRIP:
                text = text.rstrip()
            tokens.extend(self._plain(text, back))
            if token is not None:
                tokens.append(token)
            strip_next = bool(attributes & engine.LLAMA_TOKEN_ATTR_RSTRIP)
            start = place + len(marker)
        return tokens

    def _plain(self, text: str, back: Mapping[str, str]) -> list[int]:
        """Tokens of a text without any control token; user-defined ones of a message are broken in two."""
        pieces = [""]
        for character in text:
            original = back.get(character, character)
            if original in self._markers.defined:
                pieces[-1] += original[0]
                pieces.append(original[1:])
            else:
                pieces[-1] += original
        return [token for piece in pieces if piece for token in self._vocabulary.tokenize(piece, special=False)]


def _stand_ins(texts: set[str], existing: list[str]) -> dict[str, str]:
    taken = {character for text in existing for character in text if ord(character) >= _PRIVATE.start}
    free = (chr(code) for code in _PRIVATE if chr(code) not in taken)
    return dict(zip(sorted(texts), free, strict=False))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) or hasattr(value, "items"):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif not isinstance(value, int | float | bool | None):
        raise UsageError(f"messages: expected texts, numbers, lists and mappings, found {type(value).__name__}")


def _replaced(value: Any, pattern: re.Pattern[str], stand_ins: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda match: stand_ins[match.group()], value)
    if hasattr(value, "items"):
        return {_replaced(key, pattern, stand_ins): _replaced(item, pattern, stand_ins) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, pattern, stand_ins) for item in value]
    return value
