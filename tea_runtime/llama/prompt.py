"""Messages to tokens: the template's own control tokens are parsed, the same texts inside a message stay text.

Tokenising a rendered prompt as a whole, as most programs do, lets a user's `<|im_end|>` end the turn. Here the origin
of each character decides (`tea_models.chat.Segment`): only a text that the template wrote becomes a control token. A
prompt in which nothing else looks like one (nearly all) is tokenised as a whole, as llama.cpp's own programs do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tea_models.errors import TemplateError, UsageError
from tea_runtime.errors import UnsupportedError
from tea_runtime.llama.engine import llama

if TYPE_CHECKING:
    from tea_models.chat import Segment
    from tea_runtime.llama.weights import Vocabulary

# Tokens that users may type and templates look for on purpose: they don't delimit turns.
_TEMPLATE_LOGIC = re.compile(r"think|reason|tool", re.IGNORECASE)
_MARK_SHAPE = re.compile(r"<\S+>\Z|\[\S+\]\Z")

_SEEN = "zqxj part"
_HELLO: dict[str, Any] = {"role": "user", "content": "zqxj"}
# What may stand before and after a message of a role; of the other roles (tool) templates expect text.
_AROUND: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "user": ([], []),
    "system": ([], [_HELLO]),
    "assistant": ([_HELLO], []),
}


class ControlTokens:
    """The texts that must not become control tokens unless the template wrote them."""

    def __init__(self, vocabulary: Vocabulary, template: str) -> None:
        engine = llama()
        hard = engine.LLAMA_TOKEN_ATTR_CONTROL | engine.LLAMA_TOKEN_ATTR_UNKNOWN
        #: All of them.
        self.tokens: dict[str, int] = {}
        #: Parsed by llama.cpp always.
        self.defined: dict[str, int] = {}
        #: Tokens that plain text must not give. (An unknown token may stand for a character that is in no other.)
        self.reserved: set[int] = set()
        for text, token in vocabulary.specials.items():
            attributes = vocabulary.attributes(token)
            if attributes & hard:
                self.tokens[text] = token
            elif vocabulary.is_end(token) or (
                text in template and _MARK_SHAPE.match(text) and not _TEMPLATE_LOGIC.search(text)
            ):
                self.defined[text] = token
            else:
                continue
            if not attributes & engine.LLAMA_TOKEN_ATTR_UNKNOWN:
                self.reserved.add(token)
        self.tokens |= self.defined
        self._lengths = sorted({len(text) for text in self.tokens}, reverse=True)
        firsts = "".join(re.escape(first) for first in sorted({text[0] for text in self.tokens}))
        self._first = re.compile(f"[{firsts}]" if firsts else r"(?!)")

    def starting(self, text: str) -> Iterator[tuple[int, str]]:
        """Every place where such a text begins, and the text; overlapping ones too, the longest first."""
        for match in self._first.finditer(text):
            for length in self._lengths:
                found = text[match.start() : match.start() + length]
                if len(found) == length and found in self.tokens:
                    yield match.start(), found

    def find(self, text: str) -> Iterator[tuple[int, str]]:
        """Such texts from left to right, the longest where several begin, none inside another."""
        end = 0
        for place, found in self.starting(text):
            if place >= end:
                yield place, found
                end = place + len(found)


class ChatPrompt:
    """Turns messages into tokens by a template."""

    def __init__(self, vocabulary: Vocabulary, template: str, render: Callable[..., list[Segment]]) -> None:
        self._vocabulary = vocabulary
        self._contents = Contents(render)
        self._texts = ControlTokens(vocabulary, template)

    def tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt as it goes to the model."""
        given = {"tools": None if tools is None else list(tools), **(variables or {})}
        segments = self._contents.render(messages=self._contents.arranged(messages), **given)
        text = "".join(segment.text for segment in segments)
        origins = "".join(segment.origin[0] * len(segment.text) for segment in segments)
        plain = True
        for place, found in self._texts.starting(text):
            origin = origins[place : place + len(found)]
            if "u" in origin:
                raise UnsupportedError(
                    f"the chat template hides whether {found!r} comes from itself or from a message",
                    hint="leave that text out of the messages, or choose another template with chat_format",
                )
            plain = plain and "d" not in origin
        return self._vocabulary.prompt(text) if plain else self._vocabulary.with_bos(self._segment_tokens(segments))

    def _segment_tokens(self, segments: Sequence[Segment]) -> list[int]:
        """Tokens of a prompt in which only the template's own control tokens are ones."""
        engine = llama()
        tokens: list[int] = []
        text, strip = "", False
        for segment in segments:
            start = 0
            for place, found in self._texts.find(segment.text) if segment.origin == "template" else ():
                text += segment.text[start:place]
                token = self._texts.tokens[found]
                attributes = self._vocabulary.attributes(token)
                text = text.lstrip() if strip else text
                text = text.rstrip() if attributes & engine.LLAMA_TOKEN_ATTR_LSTRIP else text
                tokens += [*self._text_tokens(text), token]
                text, strip = "", bool(attributes & engine.LLAMA_TOKEN_ATTR_RSTRIP)
                start = place + len(found)
            text += segment.text[start:]
        return tokens + self._text_tokens(text.lstrip() if strip else text)

    def _text_tokens(self, text: str) -> list[int]:
        """Tokens of a text without any control token; what llama.cpp would take for one all the same is cut in two."""
        for cut in (self._texts.defined, self._texts.tokens):
            pieces, start = [], 0
            for place, found in self._texts.find(text):
                if found in cut:
                    pieces.append(text[start : place + 1])
                    start = place + 1
            pieces.append(text[start:])
            tokens = [token for piece in pieces if piece for token in self._vocabulary.tokenize(piece, special=False)]
            if self._texts.reserved.isdisjoint(tokens):
                return tokens
        raise UnsupportedError(f"this vocabulary can't write a control token's text as plain text: {text!r:.80}")


class Contents:
    """Brings contents into the form that a template takes: parts where it renders them, as `transformers` has it."""

    def __init__(self, render: Callable[..., list[Segment]]) -> None:
        self._render = render
        self._takes: dict[str, bool] = {}

    def arranged(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The messages with every content in a form that the template takes."""
        found = []
        for index, message in enumerate(messages):
            content = message.get("content")
            if isinstance(content, list | tuple):
                texts = joined_texts(content, index)
                found.append(message if self._takes_parts(str(message.get("role"))) else {**message, "content": texts})
            else:
                found.append(message)
        return found

    def render(self, *, messages: Sequence[Mapping[str, Any]], **given: Any) -> list[Segment]:
        """The prompt; a null content (beside tool calls) becomes an empty one where the template needs a text."""
        try:
            return self._render(messages=messages, **given)
        except TemplateError:
            if all(message.get("content") is not None for message in messages):
                raise
            filled = [{**message, "content": ""} if message.get("content") is None else message for message in messages]
            return self._render(messages=filled, **given)

    def _takes_parts(self, role: str) -> bool:
        if role not in _AROUND:
            return False
        if role not in self._takes:
            before, after = _AROUND[role]
            probe = {"role": role, "content": [{"type": "text", "text": _SEEN}]}
            try:
                segments = self._render(messages=[*before, probe, *after], tools=None)
                text = "".join(segment.text for segment in segments)
            except (TemplateError, UsageError):
                text = ""
            self._takes[role] = _SEEN in text and "'type'" not in text and '"type"' not in text
        return self._takes[role]


def joined_texts(parts: Sequence[Any], index: int) -> str:
    """The text of a content in parts, that of message `index`; parts that are no text are refused."""
    texts = []
    for place, part in enumerate(parts):
        where = f"messages[{index}].content[{place}]"
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
        if not isinstance(kind, str) or (kind == "text" and not isinstance(text, str)):
            raise UsageError(f'{where}: expected a part such as {{"type": "text", "text": "…"}}, found {part!r:.60}')
        if kind != "text":
            raise UnsupportedError(
                f"{where}: a local model gets text only, found a part of type {kind!r}",
                hint="leave the part out, or use a server for models with eyes and ears (backend: api)",
            )
        texts.append(str(text))
    return "".join(texts)
