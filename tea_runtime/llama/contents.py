"""Contents of messages that are no plain text, for templates that were written for plain texts: parts, and null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tea_models.errors import TemplateError, UsageError
from tea_runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tea_models.chat import Segment

_SEEN = "zqxj part"
_HELLO: dict[str, Any] = {"role": "user", "content": "zqxj"}
# What may stand before and after a message of a role; of the other roles (tool) templates expect text.
_AROUND: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "user": ([], []),
    "system": ([], [_HELLO]),
    "assistant": ([_HELLO], []),
}


class Contents:
    """Brings the contents of messages into the form that a template takes.

    A list of text parts stays one where the template renders it, so that the prompt is what `transformers` renders;
    elsewhere the texts are joined, as templates that take a list do it themselves.
    """

    def __init__(self, render: Callable[..., list[Segment]]) -> None:
        self._render = render
        self._takes: dict[str, bool] = {}

    def arranged(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The messages with every content in a form that the template takes."""
        found = []
        for index, message in enumerate(messages):
            content = message.get("content")
            if not isinstance(content, list | tuple):
                found.append(message)
                continue
            texts = joined_texts(content, index)
            found.append(message if self._takes_parts(str(message.get("role"))) else {**message, "content": texts})
        return found

    def render(self, *, messages: Sequence[Mapping[str, Any]], **given: Any) -> list[Segment]:
        """The prompt; a null content (beside tool calls) becomes an empty one where the template needs a text."""
        if all(message.get("content") is not None for message in messages):
            return self._render(messages=messages, **given)
        try:
            return self._render(messages=messages, **given)
        except TemplateError:
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
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str):
            raise UsageError(f'{where}: expected a part such as {{"type": "text", "text": "…"}}, found {part!r:.60}')
        if kind != "text":
            raise UnsupportedError(
                f"{where}: a local model gets text only, found a part of type {kind!r}",
                hint="leave the part out, or use a server for models with eyes and ears (backend: api)",
            )
        if not isinstance(part.get("text"), str):
            raise UsageError(f"{where}.text: expected a text, found {type(part.get('text')).__name__}")
        texts.append(part["text"])
    return "".join(texts)
